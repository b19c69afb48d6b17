"""The usual loss of language models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dist_moe.objective.term import TERMS, Inputs, Term
from dist_moe.ranges import NonNegative

if TYPE_CHECKING:
    from torch import Tensor


@TERMS.register
@dataclass(frozen=True, kw_only=True)
class CrossEntropy(Term):
    """- log p(token), by the model under the mask in force."""

    name = "cross_entropy"

    weight: NonNegative = 1.0
    """Weight of the cross-entropy of the response tokens, the usual language-model loss (mean of -log p(token),
    computed under the batch's mask). 0: off."""

    def losses(self, inputs: Inputs) -> Tensor:
        log_p_mV = inputs.logits_mV.float().log_softmax(-1)
        return -log_p_mV.gather(1, inputs.target_m[:, None]).squeeze(1)
