"""JetMoE: the block sorts pairs by expert itself, and its experts are two linear maps beside the router.

Its mixture of attention (`self_attention.experts`) is no expert of ours: it stays as it is, part of the dense weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dist_moe.moe.adapters.interface import AdaptedExperts
from dist_moe.moe.internals import Conversion, WeightRenaming


class JetMoeExperts(AdaptedExperts):
    @staticmethod
    def conversions() -> list[Conversion]:
        return [
            WeightRenaming(r"mlp\.input_linear\.weight", r"mlp\.experts\.gate_up_proj"),
            WeightRenaming(r"mlp\.output_linear\.weight", r"mlp\.experts\.down_proj"),
        ]


class JetMoeBlock(nn.Module):
    """In place of `JetMoeMoE`. Router and bias are the family's own."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.bias = block.bias
        self.experts = JetMoeExperts(block.input_linear.weight, block.output_linear.weight, block.activation)
        self.router = block.router

    def forward(self, layer_input: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., H]."""
        hidden_TH = layer_input.reshape(-1, layer_input.shape[-1])
        # n = T * k pairs, sorted by expert; order_n[i] is the place of pair i in [T, k]
        order_n, _, weights_n, num_pairs, _ = self.router(hidden_TH)
        expert_n = torch.arange(len(num_pairs), device=order_n.device).repeat_interleave(
            torch.tensor(num_pairs, device=order_n.device)
        )
        place_Tk = order_n.argsort().view(len(hidden_TH), -1)
        out_TH = self.experts(hidden_TH, expert_n[place_Tk], weights_n[place_Tk])
        return out_TH.view_as(layer_input) + self.bias
