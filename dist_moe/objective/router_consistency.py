"""Route unsafe rows as safe ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dist_moe.objective.term import TERMS, ContrastTerm, Inputs
from dist_moe.ranges import NonNegative

if TYPE_CHECKING:
    from torch import Tensor

LEAST = 1e-30
"""Probabilities below this count as it, so that the divergence is finite."""


@TERMS.register
@dataclass(frozen=True, kw_only=True)
class RouterConsistency(ContrastTerm):
    """KL(safe || unsafe) of the batch's mean router distributions, a mean over MoE layers.

    A token's distribution is the softmax over all that the router scores. Its mean over the safe rows' tokens, prompts
    and answers without padding, is `safe`, and each token weighs alike, whatever its row's length.
    """

    name = "router_consistency"

    weight: NonNegative = 0.0
    """Weight of the KL divergence KL(safe || unsafe), in nats, between mean router distributions, averaged over MoE
    layers. A layer's router distribution for a token is the softmax over everything that its router scores,
    without a mask; its mean is taken over all tokens (prompts and responses, no padding) of the batch's safe and
    of its unsafe rows. 0: off. With frozen routers (train.trains), the term acts on trained experts,
    through the routing of the layers above them. A step takes one more forward pass without gradients."""

    def values(self, inputs: Inputs) -> Sequence[Tensor]:
        return [logits_mW.float().softmax(-1) for logits_mW in inputs.router_logits_mW]

    def contrast(self, safe: Sequence[Tensor], unsafe: Sequence[Tensor]) -> Tensor:
        total = None
        for safe_W, unsafe_W in zip(safe, unsafe, strict=True):
            p_W, q_W = safe_W.clamp(min=LEAST), unsafe_W.clamp(min=LEAST)
            kl = (p_W * (p_W / q_W).log()).sum()
            total = kl if total is None else total + kl
        assert total is not None
        return total / len(safe)
