"""Which tensors of a model directory hold which expert; needs neither torch nor a module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_moe.weights.directory import EXPERT_NUMBER, Row, StoredTensor, expert_number


@dataclass(frozen=True, slots=True)
class HubTensor:
    """A checkpoint tensor with expert weights: of one expert, or (if `expert` is None) of all."""

    layer: int
    expert: int | None
    rows: int | None = None
    """For a two-dimensional stack of all experts: number of rows of one expert. None: row e is expert e."""

    @classmethod
    def of(cls, layer: int, name: str, tensor: StoredTensor, num_dims: int, num_experts: int) -> HubTensor:
        """From the name and shape of a tensor that becomes a weight with `num_dims` dimensions for a layer's E experts.

        A tensor of all experts has one dimension less if it is a stack, [E * rows, ...].
        """
        expert = expert_number(name)
        is_flat = expert is None and len(tensor.shape) == num_dims - 1
        return cls(layer, expert, tensor.shape[0] // num_experts if is_flat else None)

    def row(self, expert: int) -> Row:
        """Position of an expert in a tensor of all experts."""
        return expert if self.rows is None else slice(expert * self.rows, (expert + 1) * self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertTensors:
    """The tensors of a model directory, and which of them are experts'."""

    path: Path
    stored: dict[str, StoredTensor]
    """All tensors of the directory."""
    tensors: dict[str, HubTensor]
    """The tensors of experts."""
    num_experts: int
    """Number of experts in a layer."""


def named_experts(
    path: Path, stored: dict[str, StoredTensor], layer_names: Sequence[str], num_experts: int
) -> ExpertTensors | None:
    """The expert tensors of a directory in which each has its layer's name and its expert's number in its own, such as
    `model.layers.3.mlp.experts.7.up_proj.weight` of the layer `model.layers.3.mlp.experts`.

    None: the names do not tell, since a layer has other tensors, too, or lacks one for an expert, or experts' tensors
    have other shapes. Then a model's modules have to (`dist_moe.moe.layout`).

    Args:
        path: the directory.
        stored: all of its tensors.
        layer_names: the module of each layer's experts.
        num_experts: of each layer.
    """
    tensors: dict[str, HubTensor] = {}
    for layer, name in enumerate(layer_names):
        own = {tensor for tensor in stored if tensor.startswith(f"{name}.")}
        first = {tensor: stored[tensor].shape for tensor in own if expert_number(tensor) == 0}
        expected = {
            (EXPERT_NUMBER.sub(str(expert), tensor), shape, expert)
            for tensor, shape in first.items()
            for expert in range(num_experts)
        }
        if not expected or expected != {(tensor, stored[tensor].shape, expert_number(tensor)) for tensor in own}:
            return None
        tensors |= {tensor: HubTensor(layer, expert) for tensor, _, expert in expected}
    return ExpertTensors(path=path, stored=stored, tensors=tensors, num_experts=num_experts)
