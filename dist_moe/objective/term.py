"""The interface of a term."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from dist_moe.ranges import NonNegative
from dist_moe.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

Rows = Literal["all", "safe", "unsafe"]
Need = Literal["logits", "base_logits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Of m loss tokens, in the order of their rows: those of one micro-batch on one rank. m may be 0.

    A loss token is one that is trained: a token of an answer, or the one that ends its turn.
    """

    logits_mV: Tensor
    """The model's, from which the token is predicted, under the mask in force; in the model's dtype."""
    target_m: Tensor
    """The token, int64."""
    base_logits_mV: Tensor | None
    """The base model's, without a mask and without gradients. None: the term does not need them."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One term: the mean of a loss over the loss tokens of the chosen rows of the whole batch, times its weight."""

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]] = frozenset({"logits"})
    """What of `Inputs` it reads beside the targets."""

    weight: NonNegative = 0.0
    """Weight of the term in the sum that training minimizes. 0: off, at no cost."""
    rows: Literal["all", "safe", "unsafe"] = "all"
    """Rows of a batch over whose response tokens the term is averaged: all, the safe or the unsafe ones. A batch
    without such tokens contributes 0."""

    def losses(self, inputs: Inputs) -> Tensor:
        """[m], float32: the loss of each token, with a graph where the logits have one."""
        raise NotImplementedError


TERMS: Registry[Term] = Registry("objective term", "dist_moe.objective")
