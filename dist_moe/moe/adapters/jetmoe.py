"""JetMoE: the router sorts pairs by expert, and the experts are two linear maps beside it.

The mixture of attention heads (`self_attention.experts`) is not changed: it belongs to the dense weights.
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


class JetMoeRouter(nn.Module):
    """Replaces `JetMoeTopKGating`, which also sorts: the softmax of the top k logits."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.layer, self.top_k = own.layer, own.top_k

    def forward(self, hidden_TH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts and weights, [T, k] each."""
        values_Tk, index_Tk = self.layer(hidden_TH).float().topk(self.top_k, dim=1)
        return index_Tk, values_Tk.softmax(1).type_as(hidden_TH)


class JetMoeBlock(nn.Module):
    """Replaces `JetMoeMoE`. The router's weight and the bias are the family's own."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.bias = block.bias
        self.experts = JetMoeExperts(block.input_linear.weight, block.output_linear.weight, block.activation)
        self.router = JetMoeRouter(block.router)

    def forward(self, layer_input: torch.Tensor) -> torch.Tensor:
        """[..., H] -> [..., H]."""
        hidden_TH = layer_input.reshape(-1, layer_input.shape[-1])
        return self.experts(hidden_TH, *self.router(hidden_TH)).view_as(layer_input) + self.bias
