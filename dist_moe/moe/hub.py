"""Which tensors of a checkpoint on disk hold which expert.

In memory, transformers fuses a layer's experts into `gate_up_proj[E, 2I, H]` and `down_proj[E, H, I]`; most
checkpoints keep one tensor an expert and matrix. The way back is transformers' own weight conversion; this file only
asks it for the names and lays rows over experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from dist_moe.errors import UserError
from dist_moe.moe.bank import expert_weights
from dist_moe.moe.discover import MoELayer, MoEShape, find_moe_layers, moe_shape

EXPERT_NUMBER = re.compile(r"(?<=experts\.)\d+(?=\.)")


Rows = Callable[
    [MoELayer, list[int], dict[str, torch.Tensor]],
    Iterator[tuple[str, int | None, torch.Tensor]],
]


@dataclass(frozen=True, slots=True)
class HubTensor:
    """A checkpoint tensor that holds expert weights: one expert's, or (expert None) all, row e being expert e's."""

    layer: int
    expert: int | None


class HubLayout:
    """The expert tensors of one checkpoint; built from its config and its tensors' names, without reading weights."""

    def __init__(self, path: Path, names: set[str]) -> None:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        with torch.device("meta"):
            self._model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
        self._layers = find_moe_layers(self._model)
        self.shape: MoEShape = moe_shape(self._model, self._layers)
        self.tensors: dict[str, HubTensor] = {}
        self._rows: dict[int, Rows] = {}
        for layer in self._layers:
            weights = {name: layer.experts.get_parameter(name).data for name in expert_weights(layer.experts)}
            experts = list(range(self.shape.num_experts))
            for rows in (self._in_memory_rows, self._converted_rows):
                found = {
                    name: HubTensor(layer.index, None if row is not None else int(_number(name)))
                    for name, row, _ in rows(layer, experts, weights)
                }
                if found.keys() <= names:
                    self._rows[layer.index] = rows
                    self.tensors |= found
                    break
            else:
                raise UserError(f"{path}: tensor {min(found.keys() - names)} is not in the checkpoint")

    def to_hub(
        self, layer: int, experts: list[int], weights: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, int | None, torch.Tensor]]:
        """Trained weights, each [n, ...] for n experts of a layer -> (tensor's name, row or None, its new values)."""
        yield from self._rows[layer](self._layers[layer], experts, weights)

    def _in_memory_rows(
        self, layer: MoELayer, experts: list[int], weights: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, int | None, torch.Tensor]]:
        """A checkpoint that was saved as it lies in memory: all experts of a layer in one tensor."""
        for name, stacked in weights.items():
            for expert, row in zip(experts, stacked, strict=True):
                yield f"{layer.name}.{name}", expert, row

    def _converted_rows(
        self, layer: MoELayer, experts: list[int], weights: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, int | None, torch.Tensor]]:
        """As transformers' conversion writes it: a tensor an expert, numbered from 0, or all in one, renamed."""
        state = {f"{layer.name}.{name}": weight for name, weight in weights.items()}
        for name, tensor in revert_weight_conversion(self._model, state).items():
            if EXPERT_NUMBER.search(name):
                yield EXPERT_NUMBER.sub(str(experts[int(_number(name))]), name), None, tensor
            else:
                for expert, row in zip(experts, tensor, strict=True):
                    yield name, expert, row


def _number(name: str) -> str:
    found = EXPERT_NUMBER.search(name)
    assert found, f"no expert number in {name}"
    return found.group()
