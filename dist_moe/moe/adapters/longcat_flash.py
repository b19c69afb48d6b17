"""LongCat-Flash: the router also scores Z zero experts, numbered from E on, whose output is their input.

transformers keeps unused gate and up weights for them and writes these to disk; the released checkpoints have none.
"""

from __future__ import annotations

from typing import Any

import torch

from dist_moe.moe.adapters.interface import AdaptedExperts


class LongcatFlashRoutedExperts(AdaptedExperts):
    """Replaces the family's `LongcatFlashExperts`."""

    def __init__(self, own: Any) -> None:
        super().__init__(own.gate_up_proj[: own.num_routed_experts].clone(), own.down_proj, own.act_fn)
        self.num_experts: int = own.num_routed_experts
        self.num_null_experts = own.zero_expert_num

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden [T, H], experts and weights [T, k] -> [T, H]."""
        routed = super().forward(hidden_states, top_k_index, top_k_weights)
        kept_T1 = top_k_weights.where(top_k_index >= self.num_experts, 0).sum(1, keepdim=True)
        return routed + (hidden_states * kept_T1).to(routed.dtype)
