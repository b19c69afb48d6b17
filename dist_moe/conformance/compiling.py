"""Asks, before a run compiles a model's dense parts, whether torch's compiler can, on this machine and for this type.

A tiny model of the type is trained on rows of several lengths. Its parts must compile as a whole, once for all lengths,
and give the losses and gradients that they give without a compiler, to rounding.
"""

from __future__ import annotations

import torch

from dist_moe.config.schema import Config
from dist_moe.conformance.sizes import ALL_CONFIGS, VOCAB, build
from dist_moe.conformance.specimen import close
from dist_moe.errors import UserError, shown
from dist_moe.model.model import MoEModel, adopt, check_model_dir
from dist_moe.moe.compiled import CompiledParts
from dist_moe.parallel.comm import SoloComm
from dist_moe.weights.configuration import read_config

LENGTHS = (9, 14, 23)
"""Tokens of a row; for the last nothing may be compiled any more."""
CLOSE_IN_BFLOAT16 = 0.05


def refuse_compiling(config: Config, device: torch.device, *, sharded: bool) -> None:
    """Raise a one-line `UserError` unless `train.compile` can be; `sharded`: DeepSpeed's ZeRO-3 shards the weights."""
    remedy = "set train.compile to false"
    if sharded:
        raise UserError(
            "train.compile: ZeRO-3 gathers each weight when its module is called, and torch's compiler cannot follow: "
            f"take the engine fsdp, or {remedy}"
        )
    if config.model.kernels != "torch":
        raise UserError(f"train.compile: model.kernels is {config.model.kernels}, for the same parts: choose one")
    if config.train.trains == "experts_and_dense":
        raise UserError(
            "train.compile is for dense weights that stay as they are, and train.trains is experts_and_dense: a "
            f"compiler may choose the order in which it sums their gradients: {remedy}"
        )
    check_model_dir(config.model.path, weights=False)
    name = read_config(config.model.path).model_type
    if name not in ALL_CONFIGS:
        why = "nobody has tried it (no tiny configuration in dist_moe/conformance/sizes.py)"
        raise UserError(f"train.compile: model type '{name}': {why}: {remedy}")
    found = _why_not(name, config.model.attention, device)
    if found is not None:
        raise UserError(f"train.compile: torch's compiler on this machine, model type '{name}': {found}: {remedy}")


def _why_not(model_type: str, attention: str, device: torch.device) -> str | None:
    flash = attention == "flash_attention_2"  # knows 16 bits only
    with torch.random.fork_rng(devices=[]):
        built = build(model_type, torch.bfloat16 if flash else torch.float32, attention=attention)
    torch.nn.Module.to(built, device)
    model = adopt(built, SoloComm(device))
    parts = CompiledParts(model.module)
    for i, length in enumerate(LENGTHS):
        right = _gradients(model, length)
        try:
            with parts.in_force(), torch._dynamo.config.patch(error_on_recompile=i == len(LENGTHS) - 1):
                found = _gradients(model, length)
        except torch._dynamo.exc.TorchDynamoException as error:
            return shown(" ".join(str(error).split()), 300)
        if not (_near(found, right) if flash else close(found, right)):
            return "compiled, it has other gradients"
    return None


def _gradients(model: MoEModel, length: int) -> torch.Tensor:
    """Flat, of all experts, from a loss over the logits of two rows, or of one where each has a pass of its own."""
    device, rows = model.layers[0].comm.device, model.at_once(2)
    generator = torch.Generator().manual_seed(length)
    ids_RS = torch.randint(3, VOCAB - 3, (rows, length), generator=generator).to(device)
    flats = []
    with model.batch(first_layer=0):
        for layer in model.layers:
            flat_SN = torch.zeros(len(layer.local), layer.layout.size, device=device)
            layer.grads = {slot: layer.layout.views(flat_SN[slot]) for slot in range(len(layer.local))}
            flats.append(flat_SN.flatten())
        model.module(input_ids=ids_RS, use_cache=False).logits.square().mean().backward()
    return torch.cat(flats)


def _near(found: torch.Tensor, right: torch.Tensor) -> bool:
    return bool((found - right).norm() <= CLOSE_IN_BFLOAT16 * right.norm())
