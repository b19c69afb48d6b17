"""What differs between a base and its repaired model, as a stream of (place, new bytes), one expert at a time.

A run's trained experts give this stream, and so does a delta file; export.py, which takes it, does not know which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from dist_moe.moe.checkpoint import DTYPES, Row, StoredTensor
from dist_moe.training.parts import Expert
from dist_moe.training.save import TrainedExperts
from dist_moe.weights.layout import HubLayout


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
        return whole if self.row is None else row_of(whole, self.row)


Change = tuple[Place, np.ndarray]
"""A place and its new bytes, uint8."""


def row_of(whole: StoredTensor, row: Row) -> StoredTensor:
    """Some rows of a tensor's first dimension, as a tensor; one row alone has one dimension less."""
    size = (whole.stop - whole.start) // whole.shape[0]
    if isinstance(row, int):
        start, stop, shape = row, row + 1, whole.shape[1:]
    else:
        start, stop, shape = row.start, row.stop, (row.stop - row.start, *whole.shape[1:])
    return replace(whole, shape=shape, start=whole.start + start * size, stop=whole.start + stop * size)


def overwrite(target: StoredTensor, data: np.ndarray) -> None:
    """Replace a tensor's bytes in its file."""
    assert len(data) == target.stop - target.start, f"{target}: {len(data)} bytes do not fit"
    with target.file.open("r+b") as stream:
        stream.seek(target.start)
        stream.write(data.data)


def trained_places(layout: HubLayout, experts: Iterable[Expert]) -> list[tuple[Place, Expert]]:
    """Where these experts are, each place with its expert, in the order of their names; no weight is read."""
    experts_of: dict[int, list[int]] = {}
    for layer, expert in sorted(set(experts)):
        experts_of.setdefault(layer, []).append(expert)
    places = []
    for name, tensor in layout.tensors.items():
        places += [
            (Place(name, tensor.row(expert) if tensor.expert is None else None), (tensor.layer, expert))
            for expert in experts_of.get(tensor.layer, ())
            if tensor.expert in (None, expert)
        ]
    return sorted(places, key=lambda found: str(found[0]))


def trained_changes(layout: HubLayout, tensors: dict[str, StoredTensor], trained: TrainedExperts) -> Iterator[Change]:
    """A run's trained experts in the base's names and dtypes; `tensors` are the base's.

    Raises:
        UserError: they are of a model with other layers, experts or shapes.
    """
    trained.require_fits(layout.shape.num_layers, layout.shape.num_experts, layout.expert_shapes)
    for (layer, expert), weights in trained.weights():
        for name, row, values in layout.to_hub(layer, [expert], {n: weight[None] for n, weight in weights.items()}):
            place = Place(name, row)
            target = place.of(tensors)
            assert target.shape == tuple(values.shape), f"{place}: {target.shape} is not {tuple(values.shape)}"
            yield place, values.to(DTYPES[target.dtype]).contiguous().reshape(-1).view(torch.uint8).numpy()
