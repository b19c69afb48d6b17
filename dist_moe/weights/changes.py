"""What differs between a base and its repaired model, as a stream of (key, new bytes), one expert at a time.

A key names the bytes of a checkpoint: `NAME` is a whole tensor, `NAME[5]` row 5 of its first dimension, `NAME[80:96]`
rows 80 to 95. Rows are how an expert lies in a checkpoint that keeps a layer's experts in one tensor. A run's trained
experts give this stream, and so does a delta file; what takes the stream (export.py) does not know which.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch

from dist_moe.moe.checkpoint import DTYPES, Row, StoredTensor
from dist_moe.moe.hub import HubLayout
from dist_moe.training.parts import Expert
from dist_moe.training.save import TrainedExperts

Change = tuple[str, np.ndarray]
"""A key and its new bytes, uint8."""

ROW_KEY = re.compile(r"(.+)\[(\d+)(?::(\d+))?\]")


def row_key(name: str, row: Row | None) -> str:
    """The key of a tensor (None), or of some of its rows."""
    if row is None:
        return name
    return f"{name}[{row.start}:{row.stop}]" if isinstance(row, slice) else f"{name}[{row}]"


def locate(tensors: dict[str, StoredTensor], key: str) -> StoredTensor | None:
    """Where a key's bytes lie; None if the checkpoint has no such tensor or row."""
    match = ROW_KEY.fullmatch(key)
    if match is None:
        return tensors.get(key)
    whole, first, stop = tensors.get(match[1]), int(match[2]), match[3]
    row = first if stop is None else slice(first, int(stop))
    last = row if isinstance(row, int) else row.stop - 1
    return row_of(whole, row) if whole is not None and whole.shape and first <= last < whole.shape[0] else None


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


def trained_keys(layout: HubLayout, experts: Iterable[Expert]) -> dict[str, Expert]:
    """The keys that hold these experts, each with its expert, sorted; no weight is read."""
    trained = set(experts)
    experts_of: dict[int, list[int]] = {}
    for layer, expert in sorted(trained):
        experts_of.setdefault(layer, []).append(expert)
    keys = {}
    for name, tensor in layout.tensors.items():
        if tensor.expert is None:
            for expert in experts_of.get(tensor.layer, ()):
                keys[row_key(name, tensor.row(expert))] = (tensor.layer, expert)
        elif (tensor.layer, tensor.expert) in trained:
            keys[name] = (tensor.layer, tensor.expert)
    return dict(sorted(keys.items()))


def trained_changes(layout: HubLayout, tensors: dict[str, StoredTensor], trained: TrainedExperts) -> Iterator[Change]:
    """A run's trained experts in the base's names and dtypes; `tensors` are the base's.

    Raises:
        UserError: they are of a model with other layers, experts or shapes.
    """
    trained.require_fits(layout.shape.num_layers, layout.shape.num_experts, layout.expert_shapes)
    for (layer, expert), weights in trained.weights():
        for name, row, values in layout.to_hub(layer, [expert], {n: weight[None] for n, weight in weights.items()}):
            key = row_key(name, row)
            target = locate(tensors, key)
            assert target is not None, key
            assert target.shape == tuple(values.shape), f"{key}: {target.shape} is not {tuple(values.shape)}"
            yield key, values.to(DTYPES[target.dtype]).contiguous().reshape(-1).view(torch.uint8).numpy()
