"""Masks on routing: the `route` mode.

While a MoE block routes, that is from the start of its forward to the call of its experts, some operations are changed,
and everything else is the family's own code. `fill: natural` changes what comes after the family's choice (natural.py).
The others forbid experts, or lift them, before it:

- what the router's weight gives (logits): outside the allowed experts they become a very low finite value, so that
  softmax and sigmoid give exactly 0, and a renormalisation divides by what is left;
- top-k over experts, or over the experts of each group: a correction bias could lift a forbidden expert, so forbidden
  ones are taken last there. Values come from the unmasked input, which is already 0 for them; a group's are those of
  its allowed experts alone, so that the family ranks groups as if it had only these.

What the router's weight gives is also where `reading` takes a layer's logits from, before any mask.

At the experts' call a weight that is still on a forbidden expert is set to 0 (sparse mixers give one when there is
nothing else to choose), and costs nothing. With an all-true mask the result is the unmasked one, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from dist_moe.moe.discover import MoELayer
from dist_moe.moe.internals import named_arguments
from dist_moe.moe.natural import Natural
from dist_moe.moe.routing import TOPKS, Applied, InForce, Routing, Watching, lowest

Fill = Literal["natural", "shrink", "best", "bias"]
Scope = Literal["all", "unsafe"]
SOFT_CAPS = (torch.tanh, torch.Tensor.tanh)
"""A soft cap on the logits (laguna) would lift what is forbidden to a value that a renormalisation can see."""


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """What routing may use for one batch.

    `allowed_LE` bool [L, E]; a layer whose row is all true is left as it is. `fill` says how: `natural` lets each token
    choose by itself, and of its choice only the allowed experts stay active, or all of it where it has none of them;
    `shrink` routes to the allowed only, even where these are fewer than k; `best` then adds the best others by the
    router's logits, for each token its own; `bias` forbids nothing, and adds `bias` to the allowed experts' logits.
    `scope` says for which rows: all, or the unsafe ones only, and then a safe row's tokens route as without a mask.
    """

    allowed_LE: torch.Tensor
    fill: Fill = "shrink"
    bias: float = 0.0
    scope: Scope = "all"

    def most_active(self, layer: int) -> int | None:
        """The most experts that a token can have in a layer, of k or more; None: k."""
        is_fewer = self.fill == "shrink" and self.scope == "all"
        return int(self.allowed_LE[layer].sum()) if is_fewer else None

    def on(self, device: torch.device, most_scored: int) -> InForce:
        """The plan as it is put in force. `most_scored`: no router scores more experts, routed or not."""
        num_experts = self.allowed_LE.shape[1]
        allowed_LW = F.pad(self.allowed_LE, (0, most_scored - num_experts), value=True).to(device, non_blocking=True)
        everything_1E = torch.ones(1, num_experts, dtype=torch.bool, device=device)
        return InForce(
            fill=self.fill,
            bias=self.bias,
            num_allowed_L=self.allowed_LE.sum(1).tolist(),
            allowed_LE=allowed_LW[:, :num_experts],
            forbidden_LW=~allowed_LW,
            everything_1E=everything_1E,
            nothing_1E=~everything_1E,
        )


def routable(mask_LE: torch.Tensor) -> torch.Tensor:
    """The experts that a batch's mask leaves routable: bool [L, E]. A layer without any is left as it is."""
    return mask_LE | ~mask_LE.any(dim=1, keepdim=True)


class RouteMask:
    """Hooks on all MoE blocks of a model; `set` puts a plan in force until the next one.

    `masked_T` bool [T] says to which tokens of the coming forward pass the plan applies, recomputation in its backward
    included; None: to all. `applied` is what each layer's router has really applied in its last pass, None where its
    logits never came by: it is what a monitor should look at.
    """

    def __init__(self, layers: tuple[MoELayer, ...], top_k: int, device: torch.device) -> None:
        self.top_k = top_k
        self.plan: InForce | None = None
        self.masked_T: torch.Tensor | None = None
        self.applied: list[Applied | None] = [None] * len(layers)
        self._device, self._shape_LE = device, (len(layers), layers[0].num_experts)
        self._most_scored = max(layer.router_shape[0] for layer in layers)
        self._routing: dict[int, Watching] = {}
        self._read: list[torch.Tensor] | None = None
        self._silence: InForce | None = None
        for layer in layers:
            layer.block.register_forward_pre_hook(self._enter(layer))
            layer.router.register_forward_pre_hook(self._at_router(layer, True))
            layer.router.register_forward_hook(self._at_router(layer, False))
            layer.experts.register_forward_pre_hook(self._leave(layer), with_kwargs=True)
            layer.block.register_forward_hook(self._abandon(layer), always_call=True)

    def set(self, plan: RoutePlan | None) -> None:
        """Put a plan in force, for all tokens; None: no mask."""
        self.plan = None if plan is None else plan.on(self._device, self._most_scored)
        self.masked_T = None
        self.applied = [None] * len(self.applied)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """What is in force when this is entered is so again afterwards, whatever happens inside."""
        before = self.plan, self.masked_T, self.applied
        try:
            yield
        finally:
            for routing in reversed(self._routing.values()):  # of a block that an interrupt has left: hooks miss that
                routing.__exit__(None, None, None)
            self._routing.clear()
            self.plan, self.masked_T, self.applied = before

    @contextmanager
    def silencing(self, silent_LE: torch.Tensor) -> Iterator[None]:
        """While entered, no token is routed to these experts, bool [L, E], wherever no other plan is in force.

        Each layer must have others. A token's k experts are the best of the others, as if the router had only these.
        """
        assert self._silence is None
        assert not silent_LE.all(1).any(), "a layer has no expert left"
        self._silence = RoutePlan(~silent_LE, "shrink").on(self._device, self._most_scored)
        try:
            yield
        finally:
            self._silence = None

    @contextmanager
    def reading(self) -> Iterator[list[torch.Tensor]]:
        """While entered, a forward pass leaves each MoE layer's router logits in the list, [T, W] in their own dtype.

        They are what the router's weight gives, with its bias: before the mask, before what the family makes of them
        (scores, caps, correction biases), and with the graph that they have. W is E, and a few more columns where the
        family scores null or always-on experts too.
        """
        assert self._read is None
        self._read = read = [torch.empty(0)] * len(self.applied)
        try:
            yield read
        finally:
            self._read = None

    @property
    def applied_LE(self) -> torch.Tensor:
        """bool [L, E]: the experts that the routers have left to every token in their last pass."""
        everything_E = torch.ones(self._shape_LE[1], dtype=torch.bool, device=self._device)
        return torch.stack([everything_E if a is None else a.to_all_E() for a in self.applied])

    def _new(self, layer: MoELayer, plan: InForce) -> Routing:
        if plan.fill == "natural":
            return Natural(layer, plan, self.masked_T)
        return Masked(layer, plan, self.masked_T, self.top_k)

    def _enter(self, layer: MoELayer) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...]) -> None:
            self.applied[layer.index] = None
            plan = self.plan or self._silence
            if plan is not None and plan.is_open(layer.index):
                plan = None
            if plan is None and self._read is None:
                return
            routing = Watching(layer) if plan is None else self._new(layer, plan)
            self._routing[layer.index] = routing
            routing.__enter__()

        return hook

    def _at_router(self, layer: MoELayer, inside: bool) -> Any:
        def hook(*_: Any) -> None:
            if layer.index in self._routing:
                self._routing[layer.index].in_router = inside

        return hook

    def _leave(self, layer: MoELayer) -> Any:
        def hook(experts: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            routing = self._routing.pop(layer.index, None)
            if routing is None:
                return None
            routing.__exit__(None, None, None)
            if self._read is not None:
                assert routing.logits is not None, f"{layer.name}: the router's logits never came by"
                self._read[layer.index] = routing.logits.reshape(-1, routing.logits.shape[-1])
            if not isinstance(routing, Routing):
                return None
            named = named_arguments(args, kwargs)
            named["top_k_weights"] = routing.enforce(named["top_k_index"], named["top_k_weights"])
            self.applied[layer.index] = routing.applied
            return (), named

        return hook

    def _abandon(self, layer: MoELayer) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            routing = self._routing.pop(layer.index, None)
            if routing is not None:  # the block failed before it called its experts
                routing.__exit__(None, None, None)

        return hook


class Masked(Routing):
    """While entered, applies one layer's plan to the router's logits and to top-k over experts."""

    def __init__(self, layer: MoELayer, plan: InForce, masked_T: torch.Tensor | None, top_k: int) -> None:
        super().__init__(layer)
        self.plan, at = plan, slice(layer.index, layer.index + 1)
        num_scored = self.router_shape[0]
        self.num_missing = top_k - plan.num_allowed_L[layer.index] if plan.fill == "best" else 0
        self.forbidden = plan.forbidden_LW[at, :num_scored]
        """bool [1, W], or [T, W] where tokens differ: `scope: unsafe`, and `best`, which allows each token others."""
        self.lifted_TE = plan.allowed_LE[at] if plan.fill == "bias" else plan.nothing_1E
        if masked_T is not None:
            self.forbidden = self.forbidden & masked_T[:, None]
            if plan.fill == "bias":
                self.lifted_TE = self.lifted_TE & masked_T[:, None]

    def _other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.plan.fill != "bias":
            if self.in_router and func in SOFT_CAPS:
                return self._forbid(func(*args, **kwargs))
            if func in TOPKS:
                return self._top_k(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _applied(self) -> Applied:
        plan = self.plan
        allowed_TE = plan.everything_1E if plan.fill == "bias" else ~self.forbidden[:, : self.num_experts]
        bias = plan.bias if plan.fill == "bias" else 0.0
        return Applied(allowed_TE, self.lifted_TE, bias, plan.everything_1E[0], None)

    def enforce(self, index_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
        if self.plan.fill == "bias":
            return weights_Tk
        forbidden = self.forbidden.expand(len(index_Tk), -1)
        return weights_Tk.masked_fill(forbidden.gather(1, index_Tk), 0)

    def _given(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [..., W]."""
        flat_TW = logits.reshape(-1, logits.shape[-1])
        if self.plan.fill == "bias":
            lifted = F.pad(self.lifted_TE, (0, self.router_shape[0] - self.num_experts))
            return (flat_TW + self.plan.bias * lifted.to(flat_TW.dtype)).view_as(logits)
        if self.num_missing > 0:
            others_TW = flat_TW.detach().masked_fill(~self.forbidden, torch.finfo(logits.dtype).min)
            best = others_TW.topk(self.num_missing).indices
            self.forbidden = self.forbidden.expand(len(flat_TW), -1).scatter(1, best, False)
        return self._forbid(logits)

    def _top_k(self, func: Callable[..., Any], scores: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        width = scores.shape[-1]
        if self.is_of_experts(scores):
            _, index = func(self._forbid(scores), *args, **kwargs)
            return torch.return_types.topk((scores.gather(-1, index), index))
        if scores.dim() == 3 and scores.shape[1] * width == self.num_experts:
            return self._top_k_of_groups(func, scores, *args, **kwargs)
        return func(scores, *args, **kwargs)

    def _top_k_of_groups(self, func: Callable[..., Any], scores_TGM: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The values rank the groups by their sum: forbidden experts add 0, and a group of only such is last."""
        forbidden = self.forbidden[:, : self.num_experts].reshape(-1, *scores_TGM.shape[1:])
        forbidden_TGM = forbidden.expand_as(scores_TGM)
        values, index = func(scores_TGM.masked_fill(forbidden_TGM, lowest(scores_TGM)), *args, **kwargs)
        lacking = ~forbidden_TGM.all(-1, keepdim=True) & forbidden_TGM.gather(-1, index)
        return torch.return_types.topk((values.masked_fill(lacking, 0), index))

    def _forbid(self, scores: torch.Tensor) -> torch.Tensor:
        """scores [..., W or E], with the lowest value on forbidden experts."""
        flat_TW = scores.reshape(-1, scores.shape[-1])
        return flat_TW.masked_fill(self.forbidden[:, : flat_TW.shape[1]], lowest(scores)).view_as(scores)
