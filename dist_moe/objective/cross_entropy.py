"""The usual loss of language models: over all rows, and with a weight of its own for each label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dist_moe.objective.term import TERMS, Inputs, TokenTerm
from dist_moe.ranges import NonNegative

if TYPE_CHECKING:
    from torch import Tensor


@TERMS.register
@dataclass(frozen=True, kw_only=True)
class CrossEntropy(TokenTerm):
    """- log p(token), by the model under the mask in force."""

    name = "cross_entropy"

    weight: NonNegative = 1.0
    """Weight of the cross-entropy of the response tokens, the usual language-model loss (mean of -log p(token),
    computed under the batch's mask). 0: off."""

    def losses(self, inputs: Inputs) -> Tensor:
        log_p_mV = inputs.logits_mV.float().log_softmax(-1)
        return -log_p_mV.gather(1, inputs.target_m[:, None]).squeeze(1)


@TERMS.register
@dataclass(frozen=True, kw_only=True)
class Refusals(CrossEntropy):
    """Cross-entropy on unsafe rows, whose answers are refusals: a weight of its own for them."""

    name = "refusals"

    weight: NonNegative = 0.0
    """Weight of the cross-entropy of the unsafe rows' response tokens, which are refusals. 0: off. Use `refusals`
    and `answers` instead of cross_entropy to give each label a weight of its own; then set cross_entropy.weight
    to 0."""
    rows: Literal["all", "safe", "unsafe"] = "unsafe"
    """Rows of a batch over whose response tokens the term is averaged: all, the safe or the unsafe ones. A batch
    without such tokens contributes 0."""


@TERMS.register
@dataclass(frozen=True, kw_only=True)
class Answers(CrossEntropy):
    """Cross-entropy on safe rows, whose answers are helpful ones: a weight of its own for them."""

    name = "answers"

    weight: NonNegative = 0.0
    """Weight of the cross-entropy of the safe rows' response tokens. 0: off."""
    rows: Literal["all", "safe", "unsafe"] = "safe"
    """Rows of a batch over whose response tokens the term is averaged: all, the safe or the unsafe ones. A batch
    without such tokens contributes 0."""
