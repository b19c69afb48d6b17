"""Defines what "supported" means for a model type: one function for each capability, which raises if something is
wrong.

The reference is transformers' own model. The tests run these functions for every family, and `dist-moe families` runs
them with the installed transformers.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.optim.lr_scheduler import LambdaLR

from dist_moe.config.schema import TrainConfig
from dist_moe.conformance.packing import packing
from dist_moe.conformance.padding import padding
from dist_moe.conformance.specimen import COMM, Specimen, close, experts_inputs, require, require_gradients
from dist_moe.data.tokens import Encoded, collate
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import MoEModel, adopt
from dist_moe.moe.bank import expert_weights
from dist_moe.moe.discover import find_moe_layers
from dist_moe.moe.layout import hub_layout
from dist_moe.moe.load import empty_model, fill
from dist_moe.moe.route_mask import Fill, RoutePlan, routable
from dist_moe.moe.tap import GATE_UNIT
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.save import save_experts
from dist_moe.training.step import MaskedStep
from dist_moe.weights.changes import trained_changes
from dist_moe.weights.difference import difference
from dist_moe.weights.directory import read_tensors
from dist_moe.weights.export import export_checkpoint
from dist_moe.weights.trained import TrainedExperts
from dist_moe.weights.verify import verify_checkpoint

OWNED: tuple[list[int], ...] = ([1, 4, 6], [0, 7], [])
"""Experts of MoE layers 0, 1, 2 (repeated): uneven, not contiguous, one layer without any."""
NUM_STEPS = 3
FILLS: tuple[Fill, ...] = ("shrink", "natural")
"""Ways in which mode `route` restricts routing that are tried: one before a token's choice, one after it."""


def tap(specimen: Specimen) -> None:
    """Counts and gates equal a recount, token by token, of what the routers passed to the experts."""
    model, ids_RS = specimen.taken(), specimen.ids_RS
    counted_RS = torch.rand(ids_RS.shape, generator=torch.Generator().manual_seed(2)) < 0.5
    num_experts, length = model.shape.num_experts, ids_RS.shape[1]
    with torch.no_grad(), model.tap.count(counted_RS, gates=True) as tally:
        seen = experts_inputs(model, lambda: specimen.logits(model.module))
    assert tally.gates_RLE is not None
    expected_RLE = np.zeros(tally.counts_RLE.shape, np.int64)
    gates_RLE = np.zeros(tally.counts_RLE.shape)
    for layer, (_, index_Tk, weights_Tk) in enumerate(seen):
        for token in np.flatnonzero(counted_RS):
            for expert, weight in zip(index_Tk[token].tolist(), weights_Tk[token].tolist(), strict=True):
                if expert < num_experts and weight != 0:
                    expected_RLE[token // length, layer, expert] += 1
                    gates_RLE[token // length, layer, expert] += weight
    require(bool(expected_RLE.any()), "no routing was seen")
    require(bool((tally.counts_RLE.numpy() == expected_RLE).all()), "routing counts are not those of the routers")
    close = np.allclose(tally.gates_RLE.numpy() * GATE_UNIT, gates_RLE, rtol=0, atol=length * GATE_UNIT)
    require(close, "sums of routing weights are not those of the routers")


def route(specimen: Specimen) -> None:
    """An all-true mask changes no bit; otherwise, with `shrink`, only allowed experts get tokens; with `natural`, of a
    token's own choice only the allowed ones stay active, or all of it where it has none. All numbers are finite."""
    specimen.can_route()
    model = specimen.trainable()
    with torch.no_grad():
        plain = specimen.logits(model.module)
        own = experts_inputs(model, lambda: specimen.logits(model.module))
        everything_LE = torch.ones(model.shape.num_layers, model.shape.num_experts, dtype=torch.bool)
        for way in FILLS:
            with model.batch(route=RoutePlan(everything_LE, way)):
                require(
                    torch.equal(specimen.logits(model.module), plain), f"an all-true mask ({way}) changes the logits"
                )
    for num_allowed in (0, 1, 2, model.shape.num_experts - 2):
        allowed_LE, what = routable(specimen.random_mask(model, num_allowed)), f"with {num_allowed} allowed experts"
        _require_only(specimen, model, allowed_LE, what)
        _require_own_choice(specimen, model, allowed_LE, own[0], f"{what} (natural)")


def _masked(specimen: Specimen, model: MoEModel, plan: RoutePlan, what: str) -> torch.Tensor:
    """Forward and backward under a plan; the tokens that each expert received, [L, E]."""
    for layer in model.layers:
        layer.ended_S.zero_()
    model.route_mask.set(plan)
    logits = specimen.logits(model.module)
    logits.float().square().mean().backward()
    grads = [view for layer in model.layers for views in layer.grads.values() for view in views.values()]
    require(bool(logits.isfinite().all()), f"{what} a logit is not finite")
    require(all(bool(grad.isfinite().all()) for grad in grads), f"{what} a gradient is not finite")
    sent_LE = torch.stack([layer.received_S for layer in model.layers])
    require(bool(sent_LE.any(1).all()), f"{what} a layer's experts got no token")
    return sent_LE


def _require_only(specimen: Specimen, model: MoEModel, allowed_LE: torch.Tensor, what: str) -> None:
    sent_LE = _masked(specimen, model, RoutePlan(allowed_LE, "shrink"), what)
    require(not sent_LE[~allowed_LE].any(), f"{what} a token was sent to a forbidden one")
    require(torch.equal(model.route_mask.applied_LE, allowed_LE), f"{what} a router did not apply the mask")


def _require_own_choice(
    specimen: Specimen, model: MoEModel, allowed_LE: torch.Tensor, first: tuple[torch.Tensor, ...], what: str
) -> None:
    """`first` are the first layer's inputs without a mask: what stands below it is the same under one."""
    sent: list[torch.Tensor] = []
    plan = RoutePlan(allowed_LE, "natural")
    seen = experts_inputs(model, lambda: sent.append(_masked(specimen, model, plan, what)))
    weights_LTE = [_by_expert(inputs, model.shape.num_experts) for inputs in seen]
    for layer, weights_TE in enumerate(weights_LTE):
        active_TE = weights_TE != 0
        has_inside_T = (active_TE & allowed_LE[layer]).any(1)
        require(not (active_TE & ~allowed_LE[layer])[has_inside_T].any(), f"{what} a token keeps a forbidden expert")
        require(torch.equal(active_TE.sum(0).to(sent[0].dtype), sent[0][layer]), f"{what} others got tokens")
    own_TE = _by_expert(first, model.shape.num_experts)
    inside_TE = (own_TE != 0) & allowed_LE[0]
    expected_TE = torch.where(inside_TE.any(1, keepdim=True), inside_TE, own_TE != 0)
    require(torch.equal(weights_LTE[0] != 0, expected_TE), f"{what} others are active than the allowed of a choice")
    alone_T = (expected_TE == (own_TE != 0)).all(1)
    require(torch.equal(weights_LTE[0][alone_T], own_TE[alone_T]), f"{what} a token is not left alone")


def _by_expert(inputs: tuple[torch.Tensor, ...], num_experts: int) -> torch.Tensor:
    """The weights with which a layer's experts are called, [T, E]; null experts have no column."""
    _, index_Tk, weights_Tk = inputs
    is_null_Tk = index_Tk >= num_experts
    found_TE = weights_Tk.new_zeros(len(index_Tk), num_experts)
    return found_TE.scatter_add(1, index_Tk.masked_fill(is_null_Tk, 0), weights_Tk.masked_fill(is_null_Tk, 0))


def update(specimen: Specimen) -> None:
    """Logits and the gradients of every expert equal those of the plain model."""
    reference, model = specimen.plain(), specimen.trainable()
    expected, logits = specimen.logits(reference), specimen.logits(model.module)
    require(close(logits, expected), "logits are not the plain model's")
    expected.square().mean().backward()
    logits.square().mean().backward()
    require_gradients(model, reference, "gradients of layer {}, {}, are not the plain model's")


def train(specimen: Specimen) -> None:
    """Steps under masks change their masks' experts, and no bit of any other expert's weights or optimizer state."""
    specimen.once(_trained)


def _trained(specimen: Specimen) -> tuple[MoEModel, SelectiveAdamW]:
    """A model after some steps under masks, checked after each; at least one expert in a layer is in no mask."""
    model = adopt(specimen.reloaded(specimen.saved), COMM)
    with torch.no_grad(), model.tap.count(torch.ones(specimen.ids_RS.shape, dtype=torch.bool)) as tally:
        specimen.logits(model.module)
    masks = [specimen.random_mask(model, 3, seed) for seed in range(NUM_STEPS)]
    for mask_LE in masks:
        mask_LE[:, -2:] = False
        mask_LE.scatter_(1, tally.counts_RLE.sum(0).argmax(1, keepdim=True), True)  # one that gets tokens in any family
    union_LE = torch.stack(masks).any(0)
    optimizer = SelectiveAdamW(model.layers, union_LE, Mesh.one_replica(COMM), lr=1e-2)
    engine = LocalEngine(model.module, optimizer, LambdaLR(optimizer, lambda _: 1.0))
    labels = [False] * len(specimen.ids_RS)
    promises = {str(i): Promise.of(mask_LE.numpy(), labels) for i, mask_LE in enumerate(masks)}
    step = MaskedStep(model, optimizer, engine, COMM, TrainConfig(mode="update"), promises.__getitem__)
    batch = collate([Encoded(tuple(ids[:4]), tuple(ids[4:])) for ids in specimen.ids_RS.tolist()], pad_id=0)
    for i, mask_LE in enumerate(masks):
        before = _bits(model, optimizer)
        result = step(str(i), mask_LE, [batch])
        after = _bits(model, optimizer)
        moved = {key for key, tensors in after.items() if not all(map(torch.equal, tensors, before[key]))}
        active = {(int(layer), int(expert)) for layer, expert in mask_LE.nonzero()}
        require(moved <= active, f"a step moved experts outside its mask: {sorted(moved - active)}")
        require(len(moved) == result.num_stepped > 0, f"{result.num_stepped} experts stepped, {len(moved)} moved")
    return model, optimizer


def _bits(model: MoEModel, optimizer: SelectiveAdamW) -> dict[tuple[int, int], list[torch.Tensor]]:
    """(layer, expert) -> copies of its weights and of its optimizer state."""
    bits = {(layer.index, e): list(layer.row(e).values()) for layer in model.layers for e in layer.local}
    for key, state in optimizer.expert_state.items():
        bits[key] += state.tensors().values()
    return {key: [tensor.clone() for tensor in tensors] for key, tensors in bits.items()}


def _exported(specimen: Specimen) -> tuple[Path, Path, MoEModel, np.ndarray]:
    """A base on disk, the export of its trained model, that model, and the union, bool [L, E]."""
    base, experts, out = specimen.saved, specimen.path / "experts", specimen.path / "out"
    model, optimizer = specimen.once(_trained)
    save_experts(experts, model.layers, optimizer, COMM, {})
    export_checkpoint(base, trained_changes(hub_layout(base), TrainedExperts.open(experts)), out, card="")
    union_LE = np.zeros((model.shape.num_layers, model.shape.num_experts), bool)
    union_LE[tuple(np.array(list(optimizer.expert_state)).T)] = True
    return base, out, model, union_LE


def load(specimen: Specimen) -> None:
    """A rank's experts and the dense weights, read from shards, have the bits that `from_pretrained` gives."""
    path = specimen.saved
    expected = adopt(specimen.reloaded(path), COMM)
    found = empty_model(path, specimen.dtype)
    layers = find_moe_layers(found)
    owned = [OWNED[layer.index % len(OWNED)] for layer in layers]
    fill(found, layers, path, owned)
    for layer, experts in zip(layers, owned, strict=True):
        for name in expert_weights(layer.experts):
            held = layer.experts._parameters.pop(name)
            row = expected.layers[layer.index].bank[name][experts]
            require(held is not None and torch.equal(held, row), f"{layer.name}.{name} is not from_pretrained's")
    dense, right = found.state_dict(), expected.module.state_dict()
    dense |= dict(found.named_buffers())
    right |= dict(expected.module.named_buffers())
    require(dense.keys() == right.keys(), f"other weights than from_pretrained's: {dense.keys() ^ right.keys()}")
    for name, weight in right.items():
        require(torch.equal(dense[name], weight), f"{name} is not from_pretrained's")


def export(specimen: Specimen) -> None:
    """The export of a trained model, loaded by plain transformers, computes what the trained model computes."""
    _, out, model, _ = specimen.once(_exported)
    plain = specimen.reloaded(out)
    with torch.no_grad():
        require(close(specimen.logits(plain), specimen.logits(model.module)), "logits of the export differ")
    for layer, again in zip(model.layers, adopt(plain, COMM).layers, strict=True):
        for name, weight in layer.bank.items():
            require(torch.equal(again.bank[name], weight), f"layer {layer.index}, {name}: not as training left it")


def verify(specimen: Specimen) -> None:
    """Verification passes on an export, and names one flipped bit in an expert outside the union or a dense weight;
    without masks, exactly the changed experts are found, whatever names and shards their weights are stored under."""
    base, out, model, union_LE = specimen.once(_exported)
    layout = hub_layout(base)
    seen = verify_checkpoint(layout, out, union_LE)
    require(not seen.violations, f"an export is not verified: {seen.violations[:1]}")
    stepped = {(int(layer), int(expert)) for layer, expert in np.argwhere(union_LE)}
    require(bool(seen.changed_experts) and seen.changed_experts <= stepped, "changed experts are not the trained ones")
    for path in (out, specimen.resaved(out)):
        found = difference(layout, hub_layout(path))
        moved = {(each.layer, each.expert) for each in found.experts}
        require(moved == seen.changed_experts, f"{path.name}: {sorted(moved)} have moved")
        others = [each.name for each in found.tensors if path == out] + found.only_base + found.only_model
        require(not (others or found.reshaped), f"{path.name}: {others} have moved")  # loading changes a bias of zaya
    outside = next(expert for expert in range(model.shape.num_experts) if not union_LE[0, expert])
    in_expert = next(n for n, t in layout.tensors.items() if t.layer == 0 and t.expert in (None, outside))
    dense = next(name for name in layout.stored if name not in layout.tensors)
    for name in (in_expert, dense):
        damaged = specimen.path / "damaged"
        shutil.copytree(out, damaged)
        target = read_tensors(damaged)[name]
        if name == in_expert and layout.tensors[name].expert is None:
            target = target.rows(layout.tensors[name].row(outside))
        target.overwrite(np.append(target.bytes()[0] ^ 1, target.bytes()[1:]))
        lines = verify_checkpoint(layout, damaged, union_LE).violations
        require(len(lines) == 1 and lines[0].startswith(name), f"one flipped bit in {name} gives {lines}")
        shutil.rmtree(damaged)


CHECKS: dict[str, Callable[[Specimen], str | None]] = {
    "tap": tap,
    "padding": padding,
    "packing": packing,
    "route": route,
    "update": update,
    "train": train,
    "load": load,
    "export": export,
    "verify": verify,
}
"""Capability -> the function that checks it; it may return a note."""
