"""Prefer the better of two answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dist_moe.objective.term import TERMS, Inputs, TokenTerm
from dist_moe.ranges import NonNegative, Positive

if TYPE_CHECKING:
    from torch import Tensor


@TERMS.register
@dataclass(frozen=True, kw_only=True)
class DPO(TokenTerm):
    """Direct preference optimisation (arXiv 2305.18290, equation 7): -log sigmoid(beta * margin) of each pair.

    margin = log p(chosen) / base p(chosen) - log p(rejected) / base p(rejected), sums over an answer's loss tokens.
    """

    name = "dpo"
    needs = frozenset({"logits", "base_logits"})
    over = "pairs"

    weight: NonNegative = 0.0
    """Weight of direct preference optimisation, averaged over the rows with a `rejected` answer, which is compared with
    the row's `chosen` (or `response`). The reference is the model before training, without a mask. 0: off. Otherwise
    each rank keeps a frozen copy of its experts that any batch trains, and a step takes one more forward pass without
    gradients."""
    rows: Literal["all", "safe", "unsafe"] = "all"
    """Rows of a batch whose pairs the term is averaged over: all, the safe or the unsafe ones. A batch without pairs
    contributes 0."""
    beta: Positive = 0.1
    """How much a difference in log probability counts, before the sigmoid: small values let the model go further from
    the base."""

    def losses(self, inputs: Inputs) -> Tensor:
        assert inputs.base_logits_mV is not None
        assert inputs.pair_m is not None
        assert inputs.rejected_m is not None
        log_p_m, log_base_m = (
            logits_mV.float().log_softmax(-1).gather(1, inputs.target_m[:, None]).squeeze(1)
            for logits_mV in (inputs.logits_mV, inputs.base_logits_mV)
        )
        gain_m = log_p_m - log_base_m
        signed_m = gain_m.where(~inputs.rejected_m, -gain_m)
        margin = signed_m.new_zeros(inputs.num_pairs).index_add(0, inputs.pair_m, signed_m)
        # -log sigmoid(x) = log(e^0 + e^-x)
        return (-self.beta * margin[:, None] * margin.new_tensor([0.0, 1.0])).logsumexp(-1)
