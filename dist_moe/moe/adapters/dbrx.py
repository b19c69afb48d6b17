"""DBRX: gate, up and down are three flat matrices [E * I, H], in memory and on disk."""

from __future__ import annotations

from typing import Any

import torch

from dist_moe.moe.adapters.interface import AdaptedExperts
from dist_moe.moe.internals import Concatenate, Conversion, Transpose, WeightConverter


class DbrxFusedExperts(AdaptedExperts):
    """Replaces the family's `DbrxExperts`."""

    def __init__(self, own: Any) -> None:
        shape = (own.num_experts, own.ffn_hidden_size, own.hidden_size)
        gate, up, down = (weight.view(shape) for weight in (own.mlp.w1, own.mlp.v1, own.mlp.w2))
        super().__init__(torch.cat([gate, up], dim=1), down.transpose(1, 2).contiguous(), own.mlp.activation_fn)

    @staticmethod
    def conversions() -> list[Conversion]:
        return [
            WeightConverter(["experts.mlp.w1", "experts.mlp.v1"], "experts.gate_up_proj", [Concatenate(dim=1)]),
            WeightConverter("experts.mlp.w2", "experts.down_proj", [Transpose(1, 2)]),
        ]
