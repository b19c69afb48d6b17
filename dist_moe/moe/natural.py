"""`fill: natural`: of the experts that a token has chosen by itself, only the batch's stay active.

The choice is the family's own, untouched: correction biases, groups and null experts included. What is dropped of it
has no part in what the family then makes of the chosen experts' scores: where it takes these, as the values of top-k or
by a `gather` with its indices, a dropped logit becomes a very low value, and a dropped score 0. So a family that makes
the chosen experts' weights sum to one does so over those that stay, and another leaves these their weights.

A token that has chosen none of the batch's experts is left alone. So is one that has chosen no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from dist_moe.moe.discover import MoELayer
from dist_moe.moe.routing import TOPKS, Applied, InForce, Routing, lowest

GATHERS = (torch.gather, torch.Tensor.gather)
SCORES = (
    *(F.softmax, torch.softmax, torch.Tensor.softmax),
    *(F.sigmoid, torch.sigmoid, torch.Tensor.sigmoid),
    F.softplus,
)
"""What makes scores of logits: afterwards, nothing is 0 and no more the lowest value."""


class LookedUp(NamedTuple):
    """What `Natural` has found for a choice of experts."""

    index_Tk: torch.Tensor
    """Held, so that no other tensor can come to lie where it does."""
    version: int
    inside_Tk: torch.Tensor
    is_other_Tk: torch.Tensor | None

    def is_of(self, index_Tk: torch.Tensor) -> bool:
        """Whether these are the same values: another view of the same memory, which was not written in between."""
        mine = self.index_Tk
        return (
            index_Tk.data_ptr() == mine.data_ptr()
            and (index_Tk.dtype, index_Tk.shape, index_Tk.stride()) == (mine.dtype, mine.shape, mine.stride())
            and index_Tk._version == self.version
        )


class Natural(Routing):
    """Shapes as in `Watching`; k experts are what a token has chosen."""

    def __init__(self, layer: MoELayer, plan: InForce, masked_T: torch.Tensor | None) -> None:
        """`masked_T`: to which tokens the plan applies; None: to all."""
        super().__init__(layer)
        self.plan, self.masked_T = plan, masked_T
        self.batch_E = plan.allowed_LE[layer.index]
        self.scored = False
        self.index: torch.Tensor | None = None
        """Of the last choice among all experts."""
        self.dropping_T: torch.Tensor | None = None
        self._looked_up: LookedUp | None = None

    def enforce(self, index_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
        dropped_Tk, self.dropping_T = self._dropped(index_Tk, weights_Tk != 0)
        return weights_Tk.masked_fill(dropped_Tk, 0)

    def _applied(self) -> Applied:
        return Applied(self.plan.everything_1E, self.plan.nothing_1E, 0.0, self.batch_E, self.dropping_T)

    def _given(self, logits: torch.Tensor) -> torch.Tensor:
        self.scored = False
        return logits

    def _other(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        if func in SCORES and self.is_of_experts(args[0]):
            self.scored = True
        elif func in TOPKS and self.is_of_experts(args[0]):
            values, self.index = result
            return torch.return_types.topk((self._drop(values, args[0]), self.index))
        elif func in GATHERS and self.index is not None and (*args, *kwargs.values())[-1] is self.index:
            return self._drop(result, args[0])
        return result

    def _drop(self, values: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """values [..., k], taken from `source` [..., W or E] for the chosen experts."""
        assert self.index is not None
        values_Tk = values.reshape(-1, values.shape[-1])
        is_logits = self._is_logits(source)
        dropped_Tk, _ = self._dropped(self.index.reshape(values_Tk.shape), None if is_logits else values_Tk != 0)
        return values_Tk.masked_fill(dropped_Tk, lowest(values) if is_logits else 0).view_as(values)

    def _dropped(self, index_Tk: torch.Tensor, is_chosen_Tk: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the experts are dropped, and the tokens [T] of which some may be. `is_chosen_Tk`: which of them are
        chosen; None: all."""
        inside_Tk, is_other_Tk = self._look_up(index_Tk)
        if is_chosen_Tk is not None:
            inside_Tk = inside_Tk & is_chosen_Tk
        dropping_T = inside_Tk.any(1)
        if self.masked_T is not None:
            dropping_T = dropping_T & self.masked_T
        dropped_Tk = ~inside_Tk & dropping_T[:, None]
        return dropped_Tk if is_other_Tk is None else dropped_Tk & ~is_other_Tk, dropping_T

    def _look_up(self, index_Tk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Which are the batch's experts; and which are none of the routed ones, if the router scores such at all."""
        if self._looked_up is not None and self._looked_up.is_of(index_Tk):
            return self._looked_up.inside_Tk, self._looked_up.is_other_Tk
        if self.router_shape[0] == self.num_experts:
            inside_Tk, is_other_Tk = self.batch_E[index_Tk], None
        else:
            is_other_Tk = index_Tk >= self.num_experts
            inside_Tk = self.batch_E[index_Tk.clamp(max=self.num_experts - 1)] & ~is_other_Tk
        self._looked_up = LookedUp(index_Tk, index_Tk._version, inside_Tk, is_other_Tk)
        return inside_Tk, is_other_Tk

    def _is_logits(self, source: torch.Tensor) -> bool:
        """Whether these are the router's logits, of whatever data type, and not what a family has made of them."""
        if not self.scored or self.logits is None:
            return True
        return source.untyped_storage().data_ptr() == self.logits.untyped_storage().data_ptr()
