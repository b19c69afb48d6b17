"""HubLayout: which tensors of a model directory hold which expert, and which are routers.

In memory, transformers fuses a layer's experts into `gate_up_proj[E, 2I, H]` and `down_proj[E, H, I]`; most checkpoints
have one tensor per expert and matrix. Only the modules of a model can tell how one becomes the other:
`dist_moe.moe.layout` creates the value, and nothing in this package needs a module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from math import prod

import torch

from dist_moe.weights.directory import Row, StoredTensor
from dist_moe.weights.expert_tensors import ExpertTensors
from dist_moe.weights.values import as_tensor


@dataclass(frozen=True, slots=True)
class Place:
    """The bytes of a checkpoint that belong to one expert: a tensor, or rows of a tensor of all experts."""

    name: str
    """Name of the tensor."""
    row: Row | None = None
    """None: the whole tensor."""

    def __str__(self) -> str:
        """`NAME`, `NAME[5]` for row 5 of the first dimension, `NAME[80:96]` for rows 80 to 95."""
        if isinstance(self.row, slice):
            return f"{self.name}[{self.row.start}:{self.row.stop}]"
        return self.name if self.row is None else f"{self.name}[{self.row}]"

    def of(self, tensors: dict[str, StoredTensor]) -> StoredTensor:
        """These bytes of a checkpoint as a tensor."""
        whole = tensors[self.name]
        return whole if self.row is None else whole.rows(self.row)


@dataclass(frozen=True, slots=True)
class OtherTensor:
    """A checkpoint tensor without expert weights."""

    name: str
    stored: StoredTensor
    part: str
    """The part of the model that it belongs to, such as `router` or `attention`; `no weight` if it is not loaded."""


@dataclass(frozen=True, slots=True)
class Converted:
    """Tensors of a directory that become weights together, such as three that a model has as one."""

    names: tuple[str, ...]
    """The tensors."""
    weights: tuple[str, ...]
    """The model's weights."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubLayout(ExpertTensors):
    """The tensors of a model directory: which of them are experts', and what the others become."""

    num_layers: int
    expert_shapes: dict[str, list[int]]
    """Shape of each weight of one expert in memory."""
    to_hub: Callable[[int, int, dict[str, torch.Tensor]], Iterable[tuple[Place, torch.Tensor]]]
    """For a layer, an expert and its weights by name: the place of each of its tensors, and the new values."""
    weight_of: dict[str, str]
    """Name of a tensor -> the model's weight that it becomes without any change but of the name."""
    parts: dict[str, str]
    """Name of a model's weight -> the part of the model that it belongs to."""
    of_null_experts: frozenset[str]
    """Tensors that a checkpoint holds for null experts, which have no weights: nobody uses them."""
    tied: dict[str, str]
    """Names of weights that are one: each has the other's name."""

    routers: frozenset[str]
    """The tensors of routers."""
    router_weights: frozenset[str]
    """The model's weights that they become."""
    dense_shapes: dict[str, list[int]]
    """Shape in memory of each of the model's weights that is no expert's."""
    converted: tuple[Converted, ...]
    """The tensors without expert weights that become weights by more than a change of their names."""
    dense_to_hub: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
    """For dense weights by their names in memory: the tensors of the directory that they become, with new values."""

    def shapes_of(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors with a MoE layer's experts."""
        return {name: self.stored[name].shape for name, tensor in self.tensors.items() if tensor.layer == layer}

    def others(self) -> dict[str, OtherTensor]:
        """The tensors without expert weights, by the name of the weight that each becomes, or else by its own."""
        found = {}
        for name in self.stored.keys() - self.tensors.keys() - self.of_null_experts:
            weight = self.weight_of.get(name, name)
            found[weight] = OtherTensor(name, self.stored[name], self.parts.get(weight, "no weight"))
        return found

    def read_expert(self, layer: int, expert: int) -> dict[str, torch.Tensor]:
        """An expert's weights by name as in memory, in the data types of the files.

        Where each value lies on disk is asked of `to_hub`, which is given the values' numbers in place of weights.
        """
        sizes = {name: prod(shape) for name, shape in self.expert_shapes.items()}
        starts = dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))
        numbers = {
            name: torch.arange(starts[name], starts[name] + size).view(self.expert_shapes[name])
            for name, size in sizes.items()
        }
        pieces = [
            (number.reshape(-1), as_tensor(of_place.bytes(), of_place.dtype))
            for place, number in self.to_hub(layer, expert, numbers)
            for of_place in [place.of(self.stored)]
        ]
        widest = reduce(torch.promote_types, (values.dtype for _, values in pieces))
        flat = torch.full((sum(sizes.values()),), torch.nan, dtype=widest)
        for number_N, values_N in pieces:
            flat[number_N] = values_N.to(widest)
        return {
            name: flat[starts[name] : starts[name] + size].view(self.expert_shapes[name])
            for name, size in sizes.items()
        }

    def dense(self, *, routers_only: bool) -> frozenset[str]:
        """Names of the tensors of routers, or of all that is no expert's."""
        others = self.stored.keys() - self.tensors.keys() - self.of_null_experts
        return self.routers if routers_only else frozenset(others)
