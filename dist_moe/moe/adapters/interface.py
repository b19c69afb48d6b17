"""Base class of adapters: experts with the call, attributes and weights of transformers' experts interface."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from dist_moe.moe.experts import experts_forward
from dist_moe.moe.internals import Conversion, default_apply_gate


class AdaptedExperts(nn.Module):
    """Gated experts without bias, which replace those of a family; they work after their weights were moved to a bank.

    Subclasses take over the weights of the module that they replace: `gate_up_proj` [E, 2I, H], gate first, and
    `down_proj` [E, H, I]; with `is_transposed`, [E, H, 2I] and [E, I, H].
    """

    _is_expert_parallel = False
    is_transposed = False
    is_concatenated = True
    has_gate = True
    has_bias = False
    num_null_experts = 0
    """Number of experts without weights that the router scores in addition to the E routed ones."""
    _apply_gate = default_apply_gate

    def __init__(
        self, gate_up_proj: torch.Tensor, down_proj: torch.Tensor, act_fn: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(gate_up_proj.detach())
        self.down_proj = nn.Parameter(down_proj.detach())
        self.act_fn = act_fn

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden [..., H], T tokens in all, experts and weights [T, k] -> [..., H]."""
        hidden_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
        return experts_forward(self, hidden_TH, top_k_index, top_k_weights).view_as(hidden_states)

    @staticmethod
    def conversions() -> list[Conversion]:
        """Rules from the family's tensors on disk to these weights, if transformers has none."""
        return []
