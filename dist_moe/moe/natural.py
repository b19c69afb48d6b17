"""`fill: natural`: of the experts that a token has chosen by itself, only the batch's stay active.

The choice is the family's own, untouched: correction biases, groups and null experts included. What is dropped of it
has no part in what the family then makes of the chosen experts' scores: where it takes these, as the values of top-k or
by a `gather` with its indices, a dropped logit becomes a very low value, and a dropped score 0. So a family that makes
the chosen experts' weights sum to one does so over those that stay, and another leaves these their weights.

A token that has chosen none of the batch's experts is left alone. So is one that has chosen no other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from dist_moe.moe.discover import MoELayer
from dist_moe.moe.routing import TOPKS, Applied, Routing, lowest

GATHERS = (torch.gather, torch.Tensor.gather)
SCORES = (
    *(F.softmax, torch.softmax, torch.Tensor.softmax),
    *(F.sigmoid, torch.sigmoid, torch.Tensor.sigmoid),
    F.softplus,
)
"""What makes scores of logits: afterwards, nothing is 0 and no more the lowest value."""


class Natural(Routing):
    """Shapes as in `Watching`; k experts are what a token has chosen."""

    def __init__(self, layer: MoELayer, batch_E: torch.Tensor, masked_T: torch.Tensor | None) -> None:
        """`batch_E` are the batch's experts; all of them: nothing is dropped. `masked_T`: for which tokens."""
        super().__init__(layer)
        num_others = self.router_shape[0] - self.num_experts
        self.batch_E, self.masked_T = batch_E, masked_T
        self.batch_W = F.pad(batch_E, (0, num_others), value=False)
        self.null_W = F.pad(torch.zeros_like(batch_E), (0, num_others), value=True)
        self.scored = False
        self.index: torch.Tensor | None = None
        """Of the last choice among all experts."""
        self.kept_TE = torch.ones_like(batch_E)[None]

    def enforce(self, index_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
        kept_Tk, is_dropped_T = self._kept(index_Tk, weights_Tk != 0)
        self.kept_TE = self.batch_E | ~is_dropped_T[:, None]
        return weights_Tk.masked_fill(~kept_Tk, 0)

    def _applied(self) -> Applied:
        everything = torch.ones_like(self.batch_E)[None]
        return Applied(everything, ~everything, 0.0, self.kept_TE)

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
        is_chosen_Tk = torch.ones_like(values_Tk, dtype=torch.bool) if is_logits else values_Tk != 0
        kept_Tk, _ = self._kept(self.index.reshape(values_Tk.shape), is_chosen_Tk)
        return values_Tk.masked_fill(~kept_Tk, lowest(values) if is_logits else 0).view_as(values)

    def _kept(self, index_Tk: torch.Tensor, is_chosen_Tk: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Which of the chosen experts stay, and the tokens [T] of which others are dropped."""
        index_Tk = index_Tk.clamp(max=len(self.batch_W) - 1)
        inside_Tk = self.batch_W[index_Tk] & is_chosen_Tk
        is_dropped_T = inside_Tk.any(1)
        if self.masked_T is not None:
            is_dropped_T = is_dropped_T & self.masked_T
        return inside_Tk | self.null_W[index_Tk] | ~is_dropped_T[:, None], is_dropped_T

    def _is_logits(self, source: torch.Tensor) -> bool:
        """Whether these are the router's logits, of whatever data type, and not what a family has made of them."""
        if not self.scored or self.logits is None:
            return True
        return source.untyped_storage().data_ptr() == self.logits.untyped_storage().data_ptr()
