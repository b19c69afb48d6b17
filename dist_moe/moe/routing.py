"""From a MoE block's start to the call of its experts: how router logits are seen, and what a mask has applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from dist_moe.moe.discover import MoELayer

MATMULS = (F.linear, torch.mm, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)
TOPKS = (torch.topk, torch.Tensor.topk)


@dataclass(frozen=True, slots=True)
class Applied:
    """What one layer's router has applied in its last pass; bool [T, E], or [1, E] where it is alike for all tokens."""

    allowed_TE: torch.Tensor
    """Experts that could be chosen."""
    lifted_TE: torch.Tensor
    """Experts whose logits were lifted by `bias`."""
    bias: float
    kept_E: torch.Tensor
    """bool: experts that stay active where they are chosen."""
    dropping_T: torch.Tensor | None
    """bool: tokens of whose choice the other experts were dropped; None: all experts stay active everywhere."""

    @classmethod
    def nothing(cls, everything_E: torch.Tensor) -> Applied:
        """No mask at all; `everything_E` is all true."""
        everything_1E = everything_E[None]
        return cls(everything_1E, ~everything_1E, 0.0, everything_E, None)

    def to_all_E(self) -> torch.Tensor:
        """bool: experts that every token could choose and would have kept."""
        allowed_E = self.allowed_TE.all(0)
        return allowed_E if self.dropping_T is None else allowed_E & (self.kept_E | ~self.dropping_T.any())


@dataclass(frozen=True, slots=True)
class InForce:
    """A plan (route_mask.py) on its device, with what each layer and pass needs of it, which is made once."""

    fill: str
    bias: float
    num_allowed_L: Sequence[int]
    """Known to the host, which must not ask the device for it."""
    allowed_LE: torch.Tensor
    forbidden_LW: torch.Tensor
    """The others of the E experts; false for whatever routers score beside these."""
    everything_1E: torch.Tensor
    nothing_1E: torch.Tensor

    def is_open(self, layer: int) -> bool:
        """Whether a layer is left as it is."""
        return self.num_allowed_L[layer] == self.allowed_LE.shape[1]


class Watching(TorchFunctionMode):
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
        is_product = func in MATMULS or func is F.linear  # in whose place an engine may have put another
        if self.in_router and is_product and tuple(args[1].shape) in (self.router_shape, self.router_shape[::-1]):
            self.logits = func(*args, **kwargs)
            return self._given(self.logits)
        return self._other(func, args, kwargs)

    def _given(self, logits: torch.Tensor) -> torch.Tensor:
        """What the router goes on with in the place of its logits."""
        return logits

    def _other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of any other operation."""
        return func(*args, **kwargs)


class Routing(Watching):
    """A mask on one layer's routing."""

    def is_of_experts(self, scores: torch.Tensor) -> bool:
        """Whether a tensor has a value for each expert, null ones or not."""
        return scores.shape[-1] in (self.num_experts, self.router_shape[0])

    @property
    def applied(self) -> Applied | None:
        """What has been applied; None if the router's logits never came by."""
        return None if self.logits is None else self._applied()

    def enforce(self, index_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
        """The weights for the experts' call, 0 where an expert is not to be active; indices past E are null experts."""
        raise NotImplementedError

    def _applied(self) -> Applied:
        raise NotImplementedError


def lowest(scores: torch.Tensor) -> float:
    """A quarter of the lowest value, so that sums stay finite."""
    return torch.finfo(scores.dtype).min / 4
