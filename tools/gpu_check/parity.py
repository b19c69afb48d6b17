"""Is it right on this device: against plain transformers, against the CPU, and outside the mask bit for bit."""

from __future__ import annotations

import torch

from dist_moe.conformance.sizes import VOCAB, build
from dist_moe.model.model import MoEModel, adopt
from dist_moe.moe.bank import train_from
from dist_moe.moe.liger import use_liger
from dist_moe.parallel.comm import SoloComm
from dist_moe.training.loss import token_losses
from tools.gpu_check.here import Here, guarded, relative, report, token_batch
from tools.gpu_check.tiny import Tiny

FAMILIES = ("qwen3_moe", "olmoe", "mixtral", "deepseek_v3", "gpt_oss")
Found = tuple[torch.Tensor, dict[tuple[int, str], torch.Tensor]]
"""The loss, and by layer and name the gradients of all experts."""


def run(here: Here) -> None:
    for family in FAMILIES if not here.dry else FAMILIES[:1]:
        for dtype in (torch.float32, torch.bfloat16):
            with guarded("parity", f"{family} {dtype}"):
                _parity(here, family, dtype)
    for family in ("qwen3_moe", "gpt_oss") if not here.dry else FAMILIES[:1]:
        for mode in ("update", "route"):
            for dtype in (torch.float32, torch.bfloat16):
                with guarded("parity", f"freeze {family} {mode} {dtype}"):
                    _freeze(here, family, mode, dtype)
    if here.cuda:
        with guarded("parity", "qwen3_moe liger"):  # last, as its rotary embeddings stay in this process
            _parity(here, "qwen3_moe", torch.float32, liger=True)


def _parity(here: Here, family: str, dtype: torch.dtype, *, liger: bool = False) -> None:
    """Errors against transformers in float32 on the CPU; in bf16 no larger than transformers' own, with some room, as
    rounding sends a few tokens to other experts."""
    right = _plain(family, torch.float32, torch.device("cpu"))
    plain, ours = _plain(family, dtype, here.device), _ours(family, dtype, here.device, liger=liger)
    values = {
        "loss": relative(ours[0], right[0]),
        "loss_plain": relative(plain[0], right[0]),
        "gradients": max(relative(ours[1][key], right[1][key]) for key in right[1]),
        "gradients_plain": max(relative(plain[1][key], right[1][key]) for key in right[1]),
    }
    exact = dtype == torch.float32
    ok = all(values[n] < (1e-4 if exact else max(1.5 * values[f"{n}_plain"], 5e-2)) for n in ("loss", "gradients"))
    report("parity", f"{family} {dtype}{' liger' * liger}", ok, **values)


def _loss(module: torch.nn.Module, device: torch.device) -> torch.Tensor:
    batch = token_batch(VOCAB).to(device)
    logits = module(input_ids=batch.input_ids, attention_mask=batch.live.long(), use_cache=False).logits
    return token_losses(logits, batch.labels).mean()


def _plain(family: str, dtype: torch.dtype, device: torch.device) -> Found:
    """transformers' own model, with eager experts."""
    module = build(family).to(device, dtype)
    loss = _loss(module, device)
    loss.backward()
    with torch.no_grad():  # so that gradients are laid out as weights are
        for parameter in module.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    layers = adopt(module, SoloComm(device)).layers
    return loss, {(layer.index, name): bank for layer in layers for name, bank in layer.bank.items()}


def _ours(family: str, dtype: torch.dtype, device: torch.device, *, liger: bool) -> Found:
    model = adopt(build(family).to(device, dtype), SoloComm(device))
    if liger:
        use_liger(model.module, device)
    train_from(model.layers, 0)
    for layer in model.layers:
        flat = torch.zeros(len(layer.local), layer.layout.size, device=device)
        layer.grads = {slot: layer.layout.views(flat[slot]) for slot in range(len(layer.local))}
    loss = _loss(model.module, device)
    loss.backward()
    return loss, {(x.index, n): torch.stack([g[n] for g in x.grads.values()]) for x in model.layers for n in x.bank}


def _freeze(here: Here, family: str, mode: str, dtype: torch.dtype) -> None:
    """Four steps: which bits move outside the step's mask, and whether they are the same when it is done again."""
    results = []
    for _ in range(2):
        tiny = Tiny(family, mode, dtype, SoloComm(here.device), "local")
        leaks = moved = 0
        losses = []
        for i in range(len(tiny.masks_BLE)):
            before = _bits(tiny)
            losses.append(tiny.step(i))
            changed = {key for key, tensors in _bits(tiny).items() if not all(map(torch.equal, tensors, before[key]))}
            inside = {tuple(key) for key in tiny.masks_BLE[i].nonzero().tolist()}
            leaks, moved = leaks + len(changed - inside), moved + len(changed)
        results.append((leaks, moved, losses, _weights(tiny.model)))
    (leaks, moved, losses, weights), again = results[0], results[1]
    same = losses == again[2] and all(map(torch.equal, weights, again[3]))
    ok = leaks == 0 and moved > 0 and same
    report(
        "parity", f"freeze {family} {mode} {dtype}", ok, leaks=leaks, moved=moved, same_bits_again=same, losses=losses
    )


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
