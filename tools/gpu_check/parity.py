"""Is it right on this device: against plain transformers, against the CPU, and outside the mask bit for bit."""

from __future__ import annotations

import torch

from dist_moe.conformance.sizes import VOCAB, build
from dist_moe.model.model import adopt
from dist_moe.moe.bank import train_from
from dist_moe.moe.liger import use_liger
from dist_moe.parallel.comm import SoloComm
from dist_moe.training.loss import token_losses
from tools.gpu_check.freeze import freeze
from tools.gpu_check.here import Here, guarded, relative, report, token_batch

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
                    freeze(here, "parity", family, mode, dtype)
    if here.liger:
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
