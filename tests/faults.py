"""Faults of a training step, put into it one at a time: the monitor must see them before any weight moves.

Those of `LATE_FAULTS` happen where weights move: the audit must see them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from dist_moe.config.schema import TrainConfig
from dist_moe.data.tokens import Encoded
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import MoEModel, adopt
from dist_moe.moe import route_mask
from dist_moe.moe.natural import Natural
from dist_moe.moe.route_mask import RoutePlan, routable
from dist_moe.parallel.mesh import Mesh
from dist_moe.training import step as step_module
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.split import Split
from dist_moe.training.step import MaskedStep
from tests.tiny import VOCAB, E, L, tiny_model

LABELS = [False, True, False, True]
MASK, OTHER = torch.zeros(2, L, E, dtype=torch.bool)
MASK[0, 2] = True  # fewer than k
MASK[1, [1, 3, 4, 6]] = True  # more
OTHER[0, 5] = OTHER[2, [0, 7]] = True


class Trial:
    """One step of a tiny model on a batch of four rows, two of them unsafe."""

    def __init__(self, comm: Any, ep_size: int | None, settings: dict[str, Any]) -> None:
        self.comm = comm
        mesh = Mesh.of(comm, ep_size)
        self.model = adopt(tiny_model("mixtral"), mesh.ep)
        self.optimizer = SelectiveAdamW(self.model.layers, MASK | OTHER, mesh, lr=1e-2, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)
        engine = LocalEngine(self.model.module, self.optimizer, schedule)
        self.promise = Promise.of(MASK.numpy(), LABELS)
        self.settings = TrainConfig(**{"fill": "shrink"} | settings)
        self.step = MaskedStep(self.model, self.optimizer, engine, comm, self.settings, lambda batch_id: self.promise)
        self.mask, self.labels = MASK, LABELS

    def run(self, *, audited: bool = False) -> str:
        """Hash of the mask that the monitor saw."""
        ids = torch.randint(3, VOCAB, (len(LABELS), 9), generator=torch.Generator().manual_seed(4)).tolist()
        rows = [Encoded(tuple(i[:4]), tuple(i[4:]), label) for i, label in zip(ids, self.labels, strict=False)]
        split = Split.of(len(LABELS), self.comm.size, 2)
        step = self.step.audited if audited else self.step
        return step("the batch", self.mask, split.local(rows, self.comm.rank, pad_id=0)).mask_hash

    def bits(self) -> list[torch.Tensor]:
        states = [[s.master, s.exp_avg, s.exp_avg_sq, s.step] for s in self.optimizer.expert_state.values()]
        banks = [list(layer.bank.values()) for layer in self.model.layers]
        return [tensor.clone() for tensors in states + banks for tensor in tensors]


@dataclass(frozen=True)
class Fault:
    """`put(trial, patch)` breaks something; the monitor's message must contain `says`."""

    says: str
    put: Callable[[Trial, pytest.MonkeyPatch], object]
    settings: dict[str, Any] = field(default_factory=dict)


def plan(mask: torch.Tensor | None, **changes: Any) -> Callable[[Trial, pytest.MonkeyPatch], object]:
    """Routing follows another plan than the batch's; None: no plan."""

    def put(trial: Trial, patch: pytest.MonkeyPatch) -> None:
        settings = {"fill": trial.settings.fill, "bias": trial.settings.route_bias, "scope": trial.settings.scope}
        other = None if mask is None else RoutePlan(routable(mask), **settings | changes)
        patch.setattr(step_module, "route_plan", lambda *_: other)

    return put


def after_begin(change: Callable[[Trial], object]) -> Callable[[Trial, pytest.MonkeyPatch], object]:
    """Something is changed after the optimizer has made the batch's gradient buffers."""

    def put(trial: Trial, patch: pytest.MonkeyPatch) -> None:
        begin = trial.optimizer.begin
        patch.setattr(trial.optimizer, "begin", lambda mask_LE, **more: (begin(mask_LE, **more), change(trial)))

    return put


def masked(change: Callable[[torch.Tensor | None], torch.Tensor | None]) -> Any:
    """Rows other than the unsafe ones are masked."""

    def put(trial: Trial, patch: pytest.MonkeyPatch) -> None:
        original = MoEModel.next_pass

        def changed(model: MoEModel, live_RS: Any, masked_RS: torch.Tensor | None = None, **known: int) -> None:
            original(model, live_RS, change(masked_RS), **known)

        patch.setattr(MoEModel, "next_pass", changed)

    return put


def ignore_mask(trial: Trial, patch: pytest.MonkeyPatch) -> None:
    """Routers report that they applied the mask, but choose and weigh experts as without one."""
    patch.setattr(route_mask.Masked, "_forbid", lambda routing, scores: scores)
    patch.setattr(route_mask.Masked, "enforce", lambda routing, index, weights: weights)


def ignore_mask_for_weights(trial: Trial, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(route_mask.Masked, "enforce", lambda routing, index, weights: torch.ones_like(weights))


def keep_others(trial: Trial, patch: pytest.MonkeyPatch) -> None:
    """Tokens that chose some of the batch's experts also go to the other experts they chose, unreported."""
    patch.setattr(Natural, "_drop", lambda routing, values, source: values)
    enforce = Natural.enforce

    def keep(routing: Any, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        enforce(routing, index, weights)
        return weights

    patch.setattr(Natural, "enforce", keep)


def leave_all_alone(trial: Trial, patch: pytest.MonkeyPatch) -> None:
    """Each token goes to the experts it chose, and the router reports that it applied no mask."""
    patch.setattr(Natural, "_drop", lambda routing, values, source: values)
    patch.setattr(Natural, "enforce", lambda routing, index, weights: weights)


def one_more(trial: Trial, patch: pytest.MonkeyPatch) -> None:
    """Fill `best` adds an expert to layers that already have enough."""
    original = route_mask.Masked.__init__

    def init(routing: Any, *args: Any) -> None:
        original(routing, *args)
        routing.num_missing = 1

    patch.setattr(route_mask.Masked, "__init__", init)


def wrong_address(trial: Trial, patch: pytest.MonkeyPatch) -> None:
    """Tokens of two experts of a layer change places on their way."""
    key_E = trial.model.layers[1].key_E
    key_E[[1, 3]] = key_E[[3, 1]]


def swap_buffers(trial: Trial) -> None:
    """Two experts' buffers, where a rank has two."""
    for layer in trial.model.layers:
        slots = list(layer.grads)
        if len(slots) > 1:
            layer.grads[slots[0]], layer.grads[slots[1]] = layer.grads[slots[1]], layer.grads[slots[0]]


def swap_weights(trial: Trial) -> None:
    """The two halves of a fused buffer."""
    for views in trial.model.layers[1].grads.values():
        gate, up = views["gate_up_proj"].chunk(2)
        views["gate_up_proj"] = torch.cat([up, gate])


def swap_layers(trial: Trial) -> None:
    first, second = (trial.model.layers[i].grads for i in (0, 1))
    if first and second:
        slot_of_first, slot_of_second = next(iter(first)), next(iter(second))
        first[slot_of_first], second[slot_of_second] = second[slot_of_second], first[slot_of_first]


def lose_buffer(trial: Trial) -> None:
    trial.model.layers[1].grads = {}


def buffer_of_another(trial: Trial) -> None:
    """An expert outside the mask sums gradients, in a buffer of one that is in it."""
    layer = trial.model.layers[1]
    frozen = next(slot for slot, expert in enumerate(layer.local) if not MASK[1, expert])
    layer.grads[frozen] = next(iter(layer.grads.values()))


def swap_rows(trial: Trial) -> None:
    """The optimizer takes one expert's gradient for another's."""
    active = trial.optimizer.active
    active[0], active[-1] = active[-1], active[0]


def twice(trial: Trial, patch: pytest.MonkeyPatch) -> None:
    own = SelectiveAdamW.owned_active.fget
    patch.setattr(SelectiveAdamW, "owned_active", property(lambda optimizer: own(optimizer) * 2))


def set_to(**values: Any) -> Callable[[Trial, pytest.MonkeyPatch], object]:
    def put(trial: Trial, patch: pytest.MonkeyPatch) -> None:
        for name, value in values.items():
            setattr(trial, name, value)

    return put


def hash_of_another(trial: Trial, patch: pytest.MonkeyPatch) -> None:
    promise = trial.promise
    other = Promise.of(OTHER.numpy(), LABELS).mask_hash
    trial.promise = Promise(promise.mask_LE, other, promise.num_rows, promise.num_unsafe)


ROUTING, BUFFER = "not routed under the batch's mask", "gradient buffer of L"
BEST, BIAS, UNSAFE, UPDATE = {"fill": "best"}, {"fill": "bias"}, {"scope": "unsafe"}, {"mode": "update"}
NATURAL = {"fill": "natural"}

FAULTS = {
    "another batch's plan": Fault(ROUTING, plan(OTHER)),
    "another batch's plan, best": Fault(ROUTING, plan(OTHER), BEST),
    "another batch's plan, bias": Fault(ROUTING, plan(OTHER), BIAS),
    "another batch's plan, unsafe rows": Fault(ROUTING, plan(OTHER), UNSAFE),
    "a plan in mode update": Fault(ROUTING, plan(MASK), UPDATE),
    "a bias in mode update": Fault(ROUTING, plan(MASK, fill="bias"), UPDATE),
    "no plan": Fault(ROUTING, plan(None)),
    "no plan, best": Fault(ROUTING, plan(None), BEST),
    "no plan, bias": Fault(ROUTING, plan(None), BIAS),
    "no plan, unsafe rows": Fault(ROUTING, plan(None), UNSAFE),
    "best for shrink": Fault(ROUTING, plan(MASK, fill="best")),
    "shrink for best": Fault(ROUTING, plan(MASK, fill="shrink"), BEST),
    "bias for shrink": Fault(ROUTING, plan(MASK, fill="bias")),
    "shrink for bias": Fault(ROUTING, plan(MASK, fill="shrink"), BIAS),
    "natural for shrink": Fault(ROUTING, plan(MASK, fill="natural")),
    "shrink for natural": Fault(ROUTING, plan(MASK, fill="shrink"), NATURAL),
    "another batch's plan, natural": Fault(ROUTING, plan(OTHER), NATURAL),
    "no plan, natural": Fault(ROUTING, plan(None), NATURAL),
    "a natural plan in mode update": Fault(ROUTING, plan(MASK), NATURAL | UPDATE),
    "safe rows masked, natural": Fault(ROUTING, masked(lambda masked_RS: None), NATURAL | UNSAFE),
    "unsafe rows left alone, natural": Fault(ROUTING, masked(lambda m: m if m is None else ~m), NATURAL | UNSAFE),
    "a token's own others stay": Fault("sent to experts outside", keep_others, NATURAL),
    "nothing is dropped": Fault(ROUTING, leave_all_alone, NATURAL),
    "another bias": Fault(ROUTING, plan(MASK, bias=1.0), BIAS),
    "a layer without a mask is masked": Fault(ROUTING, plan(MASK | OTHER)),
    "one more expert than best may add": Fault(ROUTING, one_more, BEST),
    "safe rows masked": Fault(ROUTING, masked(lambda masked_RS: None), UNSAFE),
    "safe rows masked, bias": Fault(ROUTING, masked(lambda masked_RS: None), BIAS | UNSAFE),
    "safe rows masked, unsafe not": Fault(ROUTING, masked(lambda m: m if m is None else ~m), UNSAFE),
    "only unsafe rows masked": Fault(ROUTING, plan(MASK, scope="unsafe")),
    "a router ignores the mask": Fault("sent to experts outside", ignore_mask),
    "a router ignores the mask, best": Fault("sent to experts outside", ignore_mask, BEST),
    "a router ignores the mask, unsafe rows": Fault("sent to experts outside", ignore_mask, UNSAFE),
    "forbidden experts get weight": Fault("sent to experts outside", ignore_mask_for_weights),
    "tokens arrive at other experts": Fault("got other tokens than were sent: L01_E01 L01_E03", wrong_address, UPDATE),
    "another batch's experts": Fault("gradients are kept for L0", set_to(mask=OTHER), UPDATE),
    "one expert too many": Fault("gradients are kept for", set_to(mask=MASK | OTHER), UPDATE),
    "an expert steps twice": Fault("updated on several ranks", twice),
    "two buffers swapped": Fault(BUFFER, after_begin(swap_buffers)),
    "two buffers swapped, update": Fault(BUFFER, after_begin(swap_buffers), UPDATE),
    "halves of a buffer swapped": Fault(BUFFER, after_begin(swap_weights)),
    "a buffer of another layer": Fault(BUFFER, after_begin(swap_layers)),
    "no buffers": Fault("layer 1 sums gradients of no expert", after_begin(lose_buffer)),
    "a frozen expert's gradient": Fault("layer 1 sums gradients of", after_begin(buffer_of_another)),
    "rows swapped": Fault("gradients are kept for", after_begin(swap_rows)),
    "labels lost": Fault("4 rows were seen, 0 of them unsafe", set_to(labels=[False] * 4), UNSAFE),
    "a row lost": Fault("3 rows were seen", set_to(labels=LABELS[:3])),
    "a hash of another mask": Fault("but the batch's is", hash_of_another),
}


def seen_fault(comm: Any, ep_size: int | None, name: str) -> tuple[str, bool]:
    """What the monitor says of a fault ("" if nothing), and whether any bit has moved."""
    trial = Trial(comm, ep_size, FAULTS[name].settings)
    before = trial.bits()
    words = _words(trial, FAULTS[name])
    return words, not all(map(torch.equal, before, trial.bits()))


def stock_adamw(trial: Trial) -> None:
    """AdamW over the union, with zeros for the gradients of what should not move."""
    optimizer = trial.optimizer
    masters = [torch.nn.Parameter(state.master) for state in optimizer.expert_state.values()]
    for master in masters:
        master.grad = torch.zeros_like(master)
    torch.optim.AdamW(masters, lr=1e-2, weight_decay=0.1).step()
    for key, master in zip(optimizer.expert_state, masters, strict=True):
        optimizer._write({key: master.detach()})


def nudge(what: Callable[[Trial], torch.Tensor], rank: int) -> Callable[[Trial], object]:
    """The last bit of one value, on one rank, the last of fewer."""

    def change(trial: Trial) -> None:
        if trial.comm.rank == min(rank, trial.comm.size - 1):
            what(trial).reshape(-1)[-1:].view(torch.int32).bitwise_xor_(1)

    return change


def after_step(change: Callable[[Trial], object]) -> Callable[[Trial, pytest.MonkeyPatch], object]:
    def put(trial: Trial, patch: pytest.MonkeyPatch) -> None:
        step = trial.step.engine.step
        patch.setattr(trial.step.engine, "step", lambda last: (step(last=last), change(trial) if last else None))

    return put


def frozen_expert(trial: Trial) -> torch.Tensor:
    return trial.model.layers[2].bank["down_proj"][0]


def inactive(name: str) -> Callable[[Trial], torch.Tensor]:
    """Optimizer state of an expert that another batch trains; on each rank there is one."""

    def state(trial: Trial) -> torch.Tensor:
        key = next(key for key in trial.optimizer.expert_state if not MASK[key])
        return getattr(trial.optimizer.expert_state[key], name)

    return state


def dense(name: str) -> Callable[[Trial], torch.Tensor]:
    return lambda trial: trial.model.module.get_parameter(name).data


LATE_FAULTS = {
    # it moves all experts that have ever stepped: which one is named first depends on the rank
    "a stock AdamW": Fault("gate_up_proj, which is outside the batch's mask", after_step(stock_adamw)),
    "a frozen expert": Fault("down_proj", after_step(nudge(frozen_expert, 0))),
    "a frozen expert on the last rank": Fault("down_proj", after_step(nudge(frozen_expert, 1))),
    "a moment of an inactive expert": Fault("optimizer state exp_avg_sq", after_step(nudge(inactive("exp_avg_sq"), 1))),
    "a step count": Fault("optimizer state step", after_step(nudge(inactive("step"), 0))),
    "a router": Fault(
        "a step has changed model.layers.1.mlp.gate", after_step(nudge(dense("model.layers.1.mlp.gate.weight"), 1))
    ),
    "a dense weight": Fault(
        "a step has changed model.embed_tokens", after_step(nudge(dense("model.embed_tokens.weight"), 0))
    ),
}


def audited_fault(comm: Any, ep_size: int | None, name: str) -> tuple[str, str]:
    """What a step says of a late fault without an audit, and with one; "" is nothing."""
    quiet, audited = (_words(Trial(comm, ep_size, {}), LATE_FAULTS[name], audited=audited) for audited in (False, True))
    return quiet, audited


def _words(trial: Trial, fault: Fault, *, audited: bool = False) -> str:
    with pytest.MonkeyPatch.context() as patch:
        fault.put(trial, patch)
        try:
            trial.run(audited=audited)
        except AssertionError as error:
            return str(error)
    return ""
