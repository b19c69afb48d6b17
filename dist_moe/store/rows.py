"""Stored arrays that are read lazily, by indexing: `rows[b]`, `rows[2:5]` and `rows[:, 3, 7]` give NumPy arrays."""

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np

from dist_moe.store.zarr_arrays import ArraySpec, decode_rows

BLOCK_BYTES = 16 * 2**20
"""Reading less at once takes longer; reading more does not take less time."""
Key = int | slice | tuple[int | slice | np.ndarray, ...]


class Rows(ABC):
    """Interface of an array whose first axis is read in parts."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @abstractmethod
    def read(self, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` - 1; 0 <= start <= stop <= len."""

    @abstractmethod
    def slabs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Splits rows `start` to `stop` at file boundaries, so that each part (start, stop) reads one file."""

    def blocks(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Splits rows at file boundaries into parts (start, stop) of at most `BLOCK_BYTES`, or of one file."""
        most = self.rows_at_once
        first = last = start
        for _, end in self.slabs(start, stop):
            if first < last and end - first > most:
                yield first, last
                first = last
            last = end
        if first < last:
            yield first, last

    @property
    def rows_at_once(self) -> int:
        """How many rows `BLOCK_BYTES` hold, at least 1."""
        return max(1, BLOCK_BYTES // (self.dtype.itemsize * max(1, math.prod(self.shape[1:]))))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Key) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if isinstance(first, slice):
            start, stop, step = first.indices(len(self))
            assert step > 0
            inner = (slice(None), *rest)
            if not rest:
                return self.read(start, max(start, stop))[::step]
            # One block at a time, so that a column of a large array needs little more memory than itself.
            parts = [self.read(*block)[inner] for block in self.blocks(start, stop)]
            return np.concatenate(parts or [self.read(0, 0)[inner]])[::step]
        row = operator.index(first)
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        row %= len(self)
        values = self.read(row, row + 1)[0]
        return values[tuple(rest)] if rest else values


class StoredRows(Rows):
    """An array as it is stored."""

    def __init__(self, spec: ArraySpec, read_file: Callable[[str], bytes], what: str) -> None:
        """`what` names the array in error messages."""
        self.spec, self.shape, self.dtype = spec, spec.shape, spec.dtype
        self._read_file, self._what = read_file, what

    def slabs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        while start < stop:
            end = min(stop, (start // self.spec.rows_per_file + 1) * self.spec.rows_per_file)
            yield start, end
            start = end

    def read(self, start: int, stop: int) -> np.ndarray:
        parts = [self._decoded(*block) for block in self.blocks(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty((0, *self.shape[1:]), self.dtype), *parts])

    def _decoded(self, start: int, stop: int) -> np.ndarray:
        files = range(start // self.spec.rows_per_file, -(-stop // self.spec.rows_per_file))
        read = {file: self._read_file(self.spec.file(file)) for file in files}
        return decode_rows(self.spec, read, start, stop, self._what)


class ComputedRows(Rows):
    """float64 [B, L, E], computed from other rows when indexed."""

    def __init__(self, shape: tuple[int, ...], rows: Callable[[range], np.ndarray], like: StoredRows) -> None:
        """`rows` computes a range of batches; file boundaries are those of `like`."""
        self.shape, self.dtype = shape, np.dtype(np.float64)
        self._rows, self._like = rows, like

    def slabs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return self._like.slabs(start, stop)

    @property
    def rows_at_once(self) -> int:
        return self._like.rows_at_once

    def read(self, start: int, stop: int) -> np.ndarray:
        return self._rows(range(start, stop)) if start < stop else np.empty((0, *self.shape[1:]))


class MaskRows(Rows):
    """bool [B, L, E], stored with eight experts per byte."""

    def __init__(self, packed: StoredRows, num_experts: int) -> None:
        self.shape, self.dtype = (*packed.shape[:2], num_experts), np.dtype(np.bool_)
        self._packed = packed

    def slabs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        return self._packed.slabs(start, stop)

    def read(self, start: int, stop: int) -> np.ndarray:
        packed = self._packed.read(start, stop)
        return np.unpackbits(packed, axis=-1, count=self.shape[2]).view(np.bool_)


class PromptRows(Rows):
    """[P, ...], stored as [B, S, ...], where S is the largest number of prompts in a batch."""

    def __init__(self, by_batch: StoredRows, starts_B1: np.ndarray) -> None:
        """`starts_B1`: index of each batch's first prompt, and then P."""
        self.shape, self.dtype = (int(starts_B1[-1]), *by_batch.shape[2:]), by_batch.dtype
        self._by_batch, self._starts_B1 = by_batch, starts_B1

    def slabs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        for first, last in self._by_batch.slabs(*self._batches(start, stop)):
            yield max(start, int(self._starts_B1[first])), min(stop, int(self._starts_B1[last]))

    def read(self, start: int, stop: int) -> np.ndarray:
        first, last = self._batches(start, stop)
        padded = self._by_batch.read(first, last)
        num_prompts_B = np.diff(self._starts_B1[first : last + 1])
        is_prompt_BS = np.arange(padded.shape[1]) < num_prompts_B[:, None]
        rows = padded.reshape(-1, *padded.shape[2:]) if is_prompt_BS.all() else padded[is_prompt_BS]
        skipped = start - int(self._starts_B1[first])
        return rows[skipped : skipped + stop - start]

    def _batches(self, start: int, stop: int) -> tuple[int, int]:
        if start >= stop:
            return 0, 0
        first = np.searchsorted(self._starts_B1, start, side="right") - 1
        return int(first), int(np.searchsorted(self._starts_B1, stop, side="left"))
