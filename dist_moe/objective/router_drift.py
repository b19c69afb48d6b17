"""Keep routing where the base model has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dist_moe.objective.term import TERMS, Inputs, TokenTerm
from dist_moe.ranges import NonNegative

if TYPE_CHECKING:
    from torch import Tensor


@TERMS.register
@dataclass(frozen=True, kw_only=True)
class RouterDrift(TokenTerm):
    """KL(base || model) of the routers' distributions, a mean over MoE layers, at each token of prompts and answers."""

    name = "router_drift"
    needs = frozenset({"router_logits", "base_router_logits"})
    over = "tokens"

    weight: NonNegative = 0.0
    """Of the mean KL divergence (base || model), in nats, of what the routers make of a token: in each MoE layer the
    softmax over all that its router scores, without a mask, and then the mean over layers. 0: off. Routers are frozen,
    so this holds back what trained experts do to the routing of the layers above them. Needs what kl_to_base needs."""
    rows: Literal["all", "safe", "unsafe"] = "all"
    """Rows of a batch whose tokens, prompts' and answers', the divergence is a mean over: all, the safe or the unsafe
    ones."""

    def losses(self, inputs: Inputs) -> Tensor:
        total = None
        for base_mW, model_mW in zip(inputs.base_router_logits_mW, inputs.router_logits_mW, strict=True):
            log_base_mW, log_model_mW = base_mW.float().log_softmax(-1), model_mW.float().log_softmax(-1)
            kl_m = (log_base_mW.exp() * (log_base_mW - log_model_mW)).sum(-1)
            total = kl_m if total is None else total + kl_m
        assert total is not None
        return total / len(inputs.router_logits_mW)
