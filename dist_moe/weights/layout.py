"""Which tensors of a checkpoint on disk hold which expert.

In memory, transformers fuses a layer's experts into `gate_up_proj[E, 2I, H]` and `down_proj[E, H, I]`; most
checkpoints keep one tensor an expert and matrix. The way back is transformers' own weight conversion; this file only
asks it for the names and lays rows over experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dist_moe.moe.adapters.adapt import own_conversions
from dist_moe.moe.bank import expert_weights
from dist_moe.moe.checkpoint import EXPERT_NUMBER, Row, StoredTensor, expert_number, expert_row, rows_per_expert
from dist_moe.moe.discover import MoEShape, find_moe_layers, moe_shape
from dist_moe.moe.internals import WeightConversion
from dist_moe.moe.load import empty_model
from dist_moe.moe.misfits import refuse_misfits


@dataclass(frozen=True, slots=True)
class HubTensor:
    """A checkpoint tensor that holds expert weights: one expert's, or (expert None) all experts'."""

    layer: int
    expert: int | None
    rows: int | None = None
    """Of a flat tensor of all experts: how many rows are one expert's. None: row e is expert e's."""

    def row(self, expert: int) -> Row:
        """Where an expert lies in a tensor of all experts."""
        return expert_row(expert, self.rows)


class HubLayout:
    """The expert tensors of one checkpoint; built from its config and its tensors' headers, without reading weights."""

    def __init__(self, path: Path, tensors: dict[str, StoredTensor]) -> None:
        model = empty_model(path)
        self._layers = find_moe_layers(model)
        self.shape: MoEShape = moe_shape(model, self._layers)
        self.expert_shapes: dict[str, list[int]] = {
            name: list(self._layers[0].experts.get_parameter(name).shape[1:])
            for name in expert_weights(self._layers[0].experts)
        }
        """Shape of each weight of one expert, as it lies in memory."""
        self._conversion = WeightConversion(model, tensors, own_conversions(model))
        target_of = self._conversion.target_of
        layer_of = {f"{x.name}.{weight}": x.index for x in self._layers for weight in expert_weights(x.experts)}
        refuse_misfits(model, self._layers, path, tensors, self._conversion)
        self.tensors: dict[str, HubTensor] = {}
        for name, target in target_of.items():
            expert = expert_number(name)
            if target not in layer_of or (expert is not None and expert >= self.shape.num_experts):
                continue  # a dense weight, or what a checkpoint holds for a null expert
            num_dims = model.get_parameter(target).dim()
            rows = rows_per_expert(tensors[name], num_dims, self.shape.num_experts) if expert is None else None
            self.tensors[name] = HubTensor(layer_of[target], expert, rows)

    def to_hub(
        self, layer: int, experts: list[int], weights: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, Row | None, torch.Tensor]]:
        """Trained weights, each [n, ...] for n experts of a layer -> (tensor's name, rows or None, its new values)."""
        state = {f"{self._layers[layer].name}.{name}": weight for name, weight in weights.items()}
        for name, tensor in self._conversion.to_checkpoint(state).items():
            position = expert_number(name)
            if position is not None:  # of the n experts
                yield EXPERT_NUMBER.sub(str(experts[position]), name), None, tensor
            else:
                for expert, row in zip(experts, tensor, strict=True):
                    yield name, self.tensors[name].row(expert), row
