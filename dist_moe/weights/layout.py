"""Which tensors of a model directory hold which expert, as a value.

In memory, transformers fuses a layer's experts into `gate_up_proj[E, 2I, H]` and `down_proj[E, H, I]`; most
checkpoints keep one tensor an expert and matrix. Only a model's modules can tell how the one becomes the other:
`dist_moe.moe.layout` makes the value, and nothing in this room needs a module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from dist_moe.weights.directory import Row, StoredTensor, expert_number


@dataclass(frozen=True, slots=True)
class HubTensor:
    """A checkpoint tensor that holds expert weights: one expert's, or (expert None) all experts'."""

    layer: int
    expert: int | None
    rows: int | None = None
    """Of a flat tensor of all experts: how many rows are one expert's. None: row e is expert e's."""

    @classmethod
    def of(cls, layer: int, name: str, tensor: StoredTensor, num_dims: int, num_experts: int) -> HubTensor:
        """From a tensor's name and shape, which becomes a weight of `num_dims` dimensions of a layer's E experts.

        A tensor of all experts has one dimension less if it is flat, [E * rows, ...].
        """
        expert = expert_number(name)
        is_flat = expert is None and len(tensor.shape) == num_dims - 1
        return cls(layer, expert, tensor.shape[0] // num_experts if is_flat else None)

    def row(self, expert: int) -> Row:
        """Where an expert lies in a tensor of all experts."""
        return expert if self.rows is None else slice(expert * self.rows, (expert + 1) * self.rows)


@dataclass(frozen=True, slots=True)
class Place:
    """Which bytes of a checkpoint are an expert's: a tensor, or rows of one that holds all experts of a layer."""

    name: str
    """Of the tensor."""
    row: Row | None = None
    """None: all of it."""

    def __str__(self) -> str:
        """`NAME`, `NAME[5]` for row 5 of the first dimension, `NAME[80:96]` for rows 80 to 95."""
        if isinstance(self.row, slice):
            return f"{self.name}[{self.row.start}:{self.row.stop}]"
        return self.name if self.row is None else f"{self.name}[{self.row}]"

    def of(self, tensors: dict[str, StoredTensor]) -> StoredTensor:
        """The bytes as a tensor, in a checkpoint that has the place."""
        whole = tensors[self.name]
        return whole if self.row is None else whole.rows(self.row)


@dataclass(frozen=True, slots=True, kw_only=True)
class HubLayout:
    """The expert tensors of one model directory."""

    path: Path
    stored: dict[str, StoredTensor]
    """All its tensors."""
    tensors: dict[str, HubTensor]
    """Those of experts."""
    num_layers: int
    num_experts: int
    """Of a layer."""
    expert_shapes: dict[str, list[int]]
    """Shape of each weight of one expert, as it lies in memory."""
    to_hub: Callable[[int, int, dict[str, torch.Tensor]], Iterable[tuple[Place, torch.Tensor]]]
    """A layer, an expert, and its weights by name -> where each of its tensors goes, and its new values."""
