"""Make experts unroutable: the `route` mode.

While a MoE block routes, that is from the start of its forward to the call of its experts, two kinds of operations are
changed, and everything else is the family's own code:

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
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from dist_moe.moe.discover import MoELayer
from dist_moe.moe.internals import named_arguments

Fill = Literal["shrink", "best", "bias"]
Scope = Literal["all", "unsafe"]
MATMULS = (F.linear, torch.mm, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
TOPKS = (torch.topk, torch.Tensor.topk)
SOFT_CAPS = (torch.tanh, torch.Tensor.tanh)
"""A soft cap on the logits (laguna) would lift what is forbidden to a value that a renormalisation can see."""


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """What routing may use for one batch.

    `allowed_LE` bool [L, E]; a layer whose row is all true is left as it is. `fill` says what happens in a layer with
    fewer allowed experts than k: `shrink` routes to those only; `best` adds the best others by the router's logits, for
    each token its own; `bias` forbids nothing, and adds `bias` to the allowed experts' logits. `scope` says for which
    rows: all, or the unsafe ones only, and then a safe row's tokens route as without a mask.
    """

    allowed_LE: torch.Tensor
    fill: Fill = "shrink"
    bias: float = 0.0
    scope: Scope = "all"


def routable(mask_LE: torch.Tensor) -> torch.Tensor:
    """The experts that a batch's mask leaves routable: bool [L, E]. A layer without any is left as it is."""
    return mask_LE | ~mask_LE.any(dim=1, keepdim=True)


def surviving_slots(mask_LE: torch.Tensor, top_k: int) -> float:
    """Share of the L * k routing slots of a token that `fill: shrink` leaves under this mask."""
    num_allowed_L = routable(mask_LE).sum(1)
    return float(num_allowed_L.clamp(max=top_k).sum()) / (len(mask_LE) * top_k)


@dataclass(frozen=True, slots=True)
class Applied:
    """What one layer's router has applied in its last pass; bool [T, E], or [1, E] where it is alike for all tokens."""

    allowed_TE: torch.Tensor
    """Experts that could be chosen."""
    lifted_TE: torch.Tensor
    """Experts whose logits were lifted by `bias`."""
    bias: float


class RouteMask:
    """Hooks on all MoE blocks of a model; `set` puts a plan in force until the next one.

    `masked_T` bool [T] says to which tokens of the coming forward pass the plan applies, recomputation in its backward
    included; None: to all. `applied` is what each layer's router has really applied in its last pass, None where its
    logits never came by: it is what a monitor should look at.
    """

    def __init__(self, layers: tuple[MoELayer, ...], top_k: int, device: torch.device) -> None:
        self.top_k = top_k
        self.plan: RoutePlan | None = None
        self.masked_T: torch.Tensor | None = None
        self.applied: list[Applied | None] = [None] * len(layers)
        self._device, self._shape_LE = device, (len(layers), layers[0].num_experts)
        self._routing: dict[int, _Watching] = {}
        self._read: list[torch.Tensor] | None = None
        for layer in layers:
            layer.block.register_forward_pre_hook(self._enter(layer))
            layer.router.register_forward_pre_hook(self._at_router(layer, True))
            layer.router.register_forward_hook(self._at_router(layer, False))
            layer.experts.register_forward_pre_hook(self._leave(layer), with_kwargs=True)
            layer.block.register_forward_hook(self._abandon(layer), always_call=True)

    def set(self, plan: RoutePlan | None) -> None:
        """Put a plan in force, for all tokens; None: no mask."""
        self.plan = None if plan is None else replace(plan, allowed_LE=plan.allowed_LE.to(self._device))
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
        return torch.stack([everything_E if a is None else a.allowed_TE.all(0) for a in self.applied])

    def _enter(self, layer: MoELayer) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...]) -> None:
            self.applied[layer.index] = None
            if self.plan is None and self._read is None:
                return
            routing = _Watching(layer)
            if self.plan is not None:
                routing = _Routing(layer, self.plan, self.masked_T, self.top_k)
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
            if not isinstance(routing, _Routing):
                return None
            self.applied[layer.index] = routing.applied
            named = named_arguments(args, kwargs)
            named["top_k_weights"] = routing.enforce(named["top_k_index"], named["top_k_weights"])
            return (), named

        return hook

    def _abandon(self, layer: MoELayer) -> Any:
        def hook(block: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            routing = self._routing.pop(layer.index, None)
            if routing is not None:  # the block failed before it called its experts
                routing.__exit__(None, None, None)

        return hook


class _Watching(TorchFunctionMode):
    """While entered, sees what one layer's router gives, and changes nothing.

    Shapes: W = E routed experts and the null or always-on ones that the router scores beside them; G groups of M.
    """

    def __init__(self, layer: MoELayer) -> None:
        super().__init__()
        self.router_shape, self.num_experts = layer.router_shape, layer.num_experts
        self.in_router = False
        """A shared expert's weight can have the router's shape, so only its own module's products are logits."""
        self.logits: torch.Tensor | None = None
        """[..., W], as the router's weight has given them last; None: they have not come by."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.in_router and func in MATMULS and tuple(args[1].shape) in (self.router_shape, self.router_shape[::-1]):
            self.logits = func(*args, **kwargs)
            return self._given(self.logits)
        return self._other(func, args, kwargs)

    def _given(self, logits: torch.Tensor) -> torch.Tensor:
        """What the router goes on with in the place of its logits."""
        return logits

    def _other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of any other operation."""
        return func(*args, **kwargs)


class _Routing(_Watching):
    """While entered, applies one layer's plan to the router's logits and to top-k over experts."""

    def __init__(self, layer: MoELayer, plan: RoutePlan, masked_T: torch.Tensor | None, top_k: int) -> None:
        super().__init__(layer)
        self.plan = plan
        self.allowed_E = plan.allowed_LE[layer.index]
        self.num_missing = top_k - int(self.allowed_E.sum()) if plan.fill == "best" else 0
        num_others = self.router_shape[0] - self.num_experts
        self.allowed = F.pad(self.allowed_E, (0, num_others), value=True)[None]
        """bool [1, W], or [T, W] where tokens differ: `scope: unsafe`, and `best`, which adds others for each token."""
        self.lifted = F.pad(self.allowed_E & ~self.allowed_E.all(), (0, num_others))[None]
        if masked_T is not None:
            self.allowed = self.allowed | ~masked_T[:, None]
            self.lifted = self.lifted & masked_T[:, None]

    def _other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.plan.fill != "bias":
            if self.in_router and func in SOFT_CAPS:
                return self._forbid(func(*args, **kwargs))
            if func in TOPKS:
                return self._top_k(func, *args, **kwargs)
        return func(*args, **kwargs)

    @property
    def applied(self) -> Applied | None:
        """What has been applied; None if the router's logits never came by."""
        if self.logits is None:
            return None
        allowed_TE, lifted_TE = self.allowed[:, : self.num_experts], self.lifted[:, : self.num_experts]
        if self.plan.fill == "bias":
            return Applied(torch.ones_like(allowed_TE), lifted_TE, self.plan.bias)
        return Applied(allowed_TE, torch.zeros_like(lifted_TE), 0.0)

    def enforce(self, index_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
        """Set what weight is left on forbidden experts to 0; indices past E are null experts."""
        if self.plan.fill == "bias":
            return weights_Tk
        allowed = self.allowed[:, : self.num_experts].expand(len(index_Tk), -1)
        kept = allowed.gather(1, index_Tk.clamp(max=self.num_experts - 1)) | (index_Tk >= self.num_experts)
        return weights_Tk.masked_fill(~kept, 0)

    def _given(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [..., W]."""
        flat_TW = logits.reshape(-1, logits.shape[-1])
        if self.plan.fill == "bias":
            return (flat_TW + self.plan.bias * self.lifted.to(flat_TW.dtype)).view_as(logits)
        if self.num_missing > 0:
            lowest = torch.finfo(logits.dtype).min
            best = flat_TW.detach().masked_fill(self.allowed, lowest).topk(self.num_missing).indices
            self.allowed = self.allowed.expand(len(flat_TW), -1).scatter(1, best, True)
        return self._forbid(logits)

    def _top_k(self, func: Callable[..., Any], scores: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        width = scores.shape[-1]
        if width in (self.num_experts, self.router_shape[0]):
            _, index = func(self._forbid(scores), *args, **kwargs)
            return torch.return_types.topk((scores.gather(-1, index), index))
        if scores.dim() == 3 and scores.shape[1] * width == self.num_experts:
            return self._top_k_of_groups(func, scores, *args, **kwargs)
        return func(scores, *args, **kwargs)

    def _top_k_of_groups(self, func: Callable[..., Any], scores_TGM: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The values rank the groups by their sum: forbidden experts add 0, and a group of only such is last."""
        allowed_TGM = self.allowed[:, : self.num_experts].reshape(-1, *scores_TGM.shape[1:]).expand_as(scores_TGM)
        values, index = func(scores_TGM.masked_fill(~allowed_TGM, _lowest(scores_TGM)), *args, **kwargs)
        lacking = allowed_TGM.any(-1, keepdim=True) & ~allowed_TGM.gather(-1, index)
        return torch.return_types.topk((values.masked_fill(lacking, 0), index))

    def _forbid(self, scores: torch.Tensor) -> torch.Tensor:
        """scores [..., W or E], with the lowest value on forbidden experts."""
        flat_TW = scores.reshape(-1, scores.shape[-1])
        return flat_TW.masked_fill(~self.allowed[:, : flat_TW.shape[1]], _lowest(scores)).view_as(scores)


def _lowest(scores: torch.Tensor) -> float:
    """A quarter of the lowest value, so that sums stay finite."""
    return torch.finfo(scores.dtype).min / 4
