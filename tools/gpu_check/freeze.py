"""Steps of a tiny model, done twice: no bit outside a step's mask moves, and the same bits again."""

from __future__ import annotations

import torch
from torch._inductor import config as inductor

from dist_moe.model.model import MoEModel
from dist_moe.parallel.comm import SoloComm
from tools.gpu_check.here import Here, report
from tools.gpu_check.tiny import Tiny


def freeze(
    here: Here, section: str, family: str, mode: str, dtype: torch.dtype, *, compiled: bool = False
) -> list[float]:
    """Four steps, twice; `compiled` each time anew (on a GPU without what is kept of earlier compilations), the second
    time for other first rows.

    Returns:
        Their losses.
    """
    results = []
    for first_length in (None, 57):
        with inductor.patch(force_disable_caches=compiled and not here.dry):
            torch._dynamo.reset()
            tiny = Tiny(family, mode, dtype, SoloComm(here.device), "local", compiled=compiled)
            if compiled and first_length is not None:
                tiny.look(first_length)
            results.append(_steps(tiny))
    (leaks, moved, losses, weights), again = results
    same = losses == again[2] and all(map(torch.equal, weights, again[3]))
    ok, values = leaks == 0 and moved > 0 and same, {"leaks": leaks, "moved": moved, "same_bits_again": same}
    report(section, f"freeze {family} {mode} {dtype}", ok, **values, losses=losses)
    return losses


def _steps(tiny: Tiny) -> tuple[int, int, list[float], list[torch.Tensor]]:
    """Experts outside the masks of which a bit has moved, and all; the losses, and the weights thereafter."""
    leaks = moved = 0
    losses = []
    for i in range(len(tiny.masks_BLE)):
        before = _bits(tiny)
        losses.append(tiny.step(i))
        changed = {key for key, tensors in _bits(tiny).items() if not all(map(torch.equal, tensors, before[key]))}
        inside = {tuple(key) for key in tiny.masks_BLE[i].nonzero().tolist()}
        leaks, moved = leaks + len(changed - inside), moved + len(changed)
    return leaks, moved, losses, _weights(tiny.model)


def _weights(model: MoEModel) -> list[torch.Tensor]:
    return [bank for layer in model.layers for bank in layer.bank.values()]


def _bits(tiny: Tiny) -> dict[tuple[int, ...], list[torch.Tensor]]:
    """Copies of weights and optimizer state by (layer, expert); under (-1, -1) the dense weights."""
    layers = tiny.model.layers
    found = {(layer.index, e): list(layer.row(e).values()) for layer in layers for e in layer.local}
    for key, state in tiny.optimizer.expert_state.items():
        found[key] += [state.master, state.exp_avg, state.exp_avg_sq, state.step]
    found[-1, -1] = list(tiny.model.module.state_dict().values())
    return {key: [tensor.clone() for tensor in tensors] for key, tensors in found.items()}
