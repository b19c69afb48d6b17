"""Which tensors of a checkpoint on disk hold which expert.

In memory, transformers fuses a layer's experts into `gate_up_proj[E, 2I, H]` and `down_proj[E, H, I]`; most checkpoints
keep one tensor an expert and matrix. The way back is transformers' own weight conversion; this file only asks it for the
names and lays rows over experts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from dist_moe.errors import UserError
from dist_moe.moe.bank import WEIGHTS
from dist_moe.moe.discover import MoELayer, MoEShape, find_moe_layers, moe_shape

EXPERT_NUMBER = re.compile(r"(?<=experts\.)\d+(?=\.)")


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
        self.shape: MoEShape = moe_shape(self._layers)
        self.tensors: dict[str, HubTensor] = {}
        for layer in self._layers:
            fused = {f"{layer.name}.{name}" for name in WEIGHTS}
            if fused <= names:
                self.tensors |= {name: HubTensor(layer.index, None) for name in fused}
                continue
            weights = {name: getattr(layer.experts, name) for name in WEIGHTS}
            split = dict(self._split(layer, list(range(self.shape.num_experts)), weights))
            missing = sorted(split.keys() - names)
            if missing:
                raise UserError(f"{path}: tensor {missing[0]} is not in the checkpoint, nor {sorted(fused)[0]}")
            self.tensors |= {name: HubTensor(layer.index, int(_number(name))) for name in split}

    def to_hub(
        self, layer: int, experts: list[int], weights: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, int | None, torch.Tensor]]:
        """Trained weights, each [n, ...] for n experts of a layer -> (tensor's name, row or None, its new values)."""
        module = self._layers[layer]
        if f"{module.name}.{WEIGHTS[0]}" in self.tensors:
            for name, stacked in weights.items():
                for expert, row in zip(experts, stacked, strict=True):
                    yield f"{module.name}.{name}", expert, row
        else:
            for name, tensor in self._split(module, experts, weights):
                yield name, None, tensor

    def _split(
        self, layer: MoELayer, experts: list[int], weights: dict[str, torch.Tensor]
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """One tensor an expert and matrix, by transformers' conversion, which numbers them from 0."""
        state = {f"{layer.name}.{name}": weight for name, weight in weights.items()}
        for name, tensor in revert_weight_conversion(self._model, state).items():
            yield EXPERT_NUMBER.sub(str(experts[int(_number(name))]), name), tensor


def _number(name: str) -> str:
    found = EXPERT_NUMBER.search(name)
    assert found, f"no expert number in {name}"
    return found.group()
