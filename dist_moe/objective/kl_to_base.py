"""Stay near the base model where it is right already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dist_moe.objective.term import TERMS, Inputs, TokenTerm
from dist_moe.ranges import NonNegative

if TYPE_CHECKING:
    from torch import Tensor


@TERMS.register
@dataclass(frozen=True, kw_only=True)
class KLToBase(TokenTerm):
    """KL(base || model) over the whole vocabulary, at each loss token. The base answers as in use, without a mask."""

    name = "kl_to_base"
    needs = frozenset({"logits", "base_logits"})

    weight: NonNegative = 0.0
    """Weight of the KL divergence KL(base || model), in nats, averaged over response tokens. The base is the model
    before training, without a mask; the model is computed under the batch's mask. 0: off. Otherwise each rank keeps a
    frozen copy of its experts that any batch trains, and a step takes one more forward pass without gradients."""
    rows: Literal["all", "safe", "unsafe"] = "safe"
    """Rows of a batch over whose response tokens the term is averaged: all, the safe or the unsafe ones. A batch
    without such tokens contributes 0."""

    def losses(self, inputs: Inputs) -> Tensor:
        assert inputs.base_logits_mV is not None
        log_base_mV = inputs.base_logits_mV.float().log_softmax(-1)
        log_model_mV = inputs.logits_mV.float().log_softmax(-1)
        return (log_base_mV.exp() * (log_base_mV - log_model_mV)).sum(-1)
