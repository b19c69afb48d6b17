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
    """Weight of the KL divergence KL(base || model), in nats, between the router distributions of the base model and
    of the model, averaged over tokens and MoE layers. A layer's router distribution for a token is the softmax
    over everything that its router scores, without a mask. 0: off. With frozen routers (train.trains), the term
    limits how far trained experts change the routing of the layers above them. It takes the same memory and time as
    kl_to_base."""
    rows: Literal["all", "safe", "unsafe"] = "all"
    """Rows of a batch over whose tokens, of prompts and responses, the term is averaged: all, the safe or the unsafe
    ones."""

    def losses(self, inputs: Inputs) -> Tensor:
        total = None
        for base_mW, model_mW in zip(inputs.base_router_logits_mW, inputs.router_logits_mW, strict=True):
            log_base_mW, log_model_mW = base_mW.float().log_softmax(-1), model_mW.float().log_softmax(-1)
            kl_m = (log_base_mW.exp() * (log_base_mW - log_model_mW)).sum(-1)
            total = kl_m if total is None else total + kl_m
        assert total is not None
        return total / len(inputs.router_logits_mW)
