"""Llama 4: the routing score multiplies the input of an expert, and the family's block runs every expert on every
token."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dist_moe.moe.adapters.interface import AdaptedExperts
from dist_moe.moe.experts import experts_forward


class Llama4Experts(AdaptedExperts):
    is_transposed = True

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden [T, H], experts and weights [T, k] -> [T, H]."""
        # one call for each of the k, as each has inputs of its own: released models have k = 1
        routed = top_k_weights.detach().ne(0).to(hidden_states.dtype)
        outs = [
            experts_forward(self, hidden_states * weight[:, None], index[:, None], on[:, None])
            for weight, index, on in zip(top_k_weights.unbind(1), top_k_index.unbind(1), routed.unbind(1), strict=True)
        ]
        return torch.stack(outs).sum(0)


class Llama4Block(nn.Module):
    """Replaces `Llama4TextMoe`, and calls only the top-k experts. Router and shared expert are the family's own."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        own = block.experts
        self.experts = Llama4Experts(own.gate_up_proj, own.down_proj, own.act_fn)
        self.router = block.router
        self.shared_expert = block.shared_expert

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [..., H] -> [T, H] and the router's logits [T, E]."""
        hidden_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores_TE, logits_TE = self.router(hidden_TH)  # 0 outside the top-k
        weights_Tk, index_Tk = scores_TE.topk(self.router.top_k, dim=1)
        return self.shared_expert(hidden_TH) + self.experts(hidden_TH, index_Tk, weights_Tk), logits_TE
