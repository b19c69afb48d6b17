"""How far tensors have moved: the size of a change, added up block by block, so that no whole tensor is in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from dist_moe.weights.directory import StoredTensor
from dist_moe.weights.values import DTYPES, as_tensor

VALUES_AT_ONCE = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of a change, over some values."""

    relative: float | None
    """||after - before|| / ||before||, Frobenius norms. None: all values were 0, or one is not a finite number."""
    max_abs: float | None
    """The largest |after - before|. None: a value is not a finite number."""
    num_changed: int
    """Values that are not what they were."""
    num_values: int


class Sum:
    """Adds up the changes of pairs of tensors.

    Where the two differ in data type, the one before is first rounded to that of the one after: what rounding alone
    explains is no change, and what a wider type shows in addition is one.
    """

    def __init__(self) -> None:
        self._square_change = self._square_before = self._max_abs = 0.0
        self._num_changed = self._num_values = 0

    def add(self, before: torch.Tensor, after: torch.Tensor) -> None:
        """Two tensors of one shape and any floating-point types."""
        rounded = before.to(after.dtype)
        same = (rounded == after) | (rounded.isnan() & after.isnan())
        self._num_values += same.numel()
        num_changed = same.numel() - int(same.sum())
        self._square_before += float(rounded.double().square().sum())
        if num_changed:
            change = after.double() - rounded.double()
            self._num_changed += num_changed
            self._square_change += float(change.square().sum())
            largest = float(change.abs().max())
            self._max_abs = _larger(self._max_abs, largest)

    def add_stored(self, before: StoredTensor, after: StoredTensor) -> None:
        """Two tensors in files, of one shape; types that are not floating-point are compared as bytes."""
        if before.dtype in DTYPES and after.dtype in DTYPES:
            for some_before, some_after in _blocks(before, after):
                self.add(some_before, some_after)
            return
        assert before.dtype == after.dtype, f"{before} and {after} cannot be compared"
        num_values = math.prod(before.shape)
        differ = (before.bytes() != after.bytes()).reshape(num_values, -1).any(1) if num_values else np.zeros(0, bool)
        self._num_values += num_values
        self._num_changed += int(differ.sum())
        if differ.any():
            self._max_abs = self._square_change = math.nan

    def include(self, other: Sum) -> None:
        """Add all that another sum has added."""
        self._square_change += other._square_change
        self._square_before += other._square_before
        self._num_changed += other._num_changed
        self._num_values += other._num_values
        self._max_abs = _larger(self._max_abs, other._max_abs)

    @property
    def size(self) -> Size:
        """Of all that was added."""
        relative = None
        if self._square_before > 0 or not self._num_changed:
            relative = _finite(math.sqrt(self._square_change / self._square_before) if self._num_changed else 0.0)
        return Size(
            relative=relative,
            max_abs=_finite(self._max_abs),
            num_changed=self._num_changed,
            num_values=self._num_values,
        )


def comparable(before: StoredTensor, after: StoredTensor) -> bool:
    """Whether the values of two tensors of one shape can be compared."""
    return before.dtype == after.dtype or (before.dtype in DTYPES and after.dtype in DTYPES)


def _blocks(before: StoredTensor, after: StoredTensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The values of both, flat, some at a time."""
    pairs = [(tensor.bytes(), DTYPES[tensor.dtype].itemsize, tensor.dtype) for tensor in (before, after)]
    for start in range(0, math.prod(before.shape), VALUES_AT_ONCE):
        stop = start + VALUES_AT_ONCE
        one, other = (as_tensor(data[start * size : stop * size], dtype) for data, size, dtype in pairs)
        yield one, other


def _larger(one: float, other: float) -> float:
    """Of two numbers; NaN if one of them is."""
    return math.nan if math.isnan(one) or math.isnan(other) else max(one, other)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
