"""What differs between a base and its repaired model, as a stream of (key, new bytes), one expert at a time.

A key names the bytes of a checkpoint: `NAME` is a whole tensor, `NAME[5]` row 5 of its first dimension, which is how an
expert lies in a checkpoint that keeps a layer's experts in one tensor. A run's trained experts give this stream, and so
does a delta file; what takes the stream (export.py) does not know which.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from dist_moe.moe.checkpoint import DTYPES, StoredTensor
from dist_moe.moe.hub import HubLayout
from dist_moe.training.save import read_index

Change = tuple[str, np.ndarray]
"""A key and its new bytes, uint8."""

ROW_KEY = re.compile(r"(.+)\[(\d+)\]")


def row_key(name: str, row: int | None) -> str:
    """The key of a tensor (None), or of one of its rows."""
    return name if row is None else f"{name}[{row}]"


def locate(tensors: dict[str, StoredTensor], key: str) -> StoredTensor | None:
    """Where a key's bytes lie; None if the checkpoint has no such tensor or row."""
    match = ROW_KEY.fullmatch(key)
    if match is None:
        return tensors.get(key)
    whole, row = tensors.get(match[1]), int(match[2])
    return row_of(whole, row) if whole is not None and whole.shape and row < whole.shape[0] else None


def row_of(whole: StoredTensor, row: int) -> StoredTensor:
    """One row of a tensor's first dimension, as a tensor."""
    size = (whole.stop - whole.start) // whole.shape[0]
    start = whole.start + row * size
    return replace(whole, shape=whole.shape[1:], start=start, stop=start + size)


def overwrite(target: StoredTensor, data: np.ndarray) -> None:
    """Replace a tensor's bytes in its file."""
    assert len(data) == target.stop - target.start, f"{target}: {len(data)} bytes do not fit"
    with target.file.open("r+b") as stream:
        stream.seek(target.start)
        stream.write(data.data)


def trained_keys(layout: HubLayout, experts: Path) -> list[str]:
    """The keys that `trained_changes` gives, sorted; no weight is read."""
    trained = {_numbers(key) for key in read_index(experts)["experts"]}
    rows_of: dict[int, list[int]] = {}
    for layer, expert in sorted(trained):
        rows_of.setdefault(layer, []).append(expert)
    keys = []
    for name, tensor in layout.tensors.items():
        if tensor.expert is None:
            keys += [row_key(name, row) for row in rows_of.get(tensor.layer, ())]
        elif (tensor.layer, tensor.expert) in trained:
            keys.append(name)
    return sorted(keys)


def trained_changes(layout: HubLayout, tensors: dict[str, StoredTensor], experts: Path) -> Iterator[Change]:
    """A run's trained experts in the base's names and dtypes; `tensors` are the base's."""
    for layer, expert, weights in _trained_experts(experts):
        for name, row, values in layout.to_hub(layer, [expert], {n: weight[None] for n, weight in weights.items()}):
            key = row_key(name, row)
            target = locate(tensors, key)
            assert target is not None, key
            assert target.shape == tuple(values.shape), f"{key}: {target.shape} is not {tuple(values.shape)}"
            yield key, values.to(DTYPES[target.dtype]).contiguous().reshape(-1).view(torch.uint8).numpy()


def _trained_experts(path: Path) -> Iterator[tuple[int, int, dict[str, torch.Tensor]]]:
    """Layer, expert and its weights, file by file."""
    for file in sorted(set(read_index(path)["experts"].values())):
        with safe_open(path / file, "pt") as stream:
            for (layer, expert), keys in groupby(sorted(stream.keys(), key=_numbers), _numbers):
                yield layer, expert, {key.split(".", 2)[2]: stream.get_tensor(key) for key in keys}


def _numbers(key: str) -> tuple[int, int]:
    """`"3.17.down_proj"` -> `(3, 17)`."""
    layer, expert = key.split(".")[:2]
    return int(layer), int(expert)
