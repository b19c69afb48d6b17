"""Zarr v3 arrays as bytes: the contents of each file of an array, and back.

So a file's digest can be compared before anything is decoded, and a file is written completely by whoever has its rows.
Only the first axis is split. A plain array has one chunk per file; a sharded one has a chunk for each row, so that a
row can be decoded alone.

zarr-python writes, on files in memory. Reading is done here, for the few forms that are written: zarr-python hands each
chunk to a thread of its own and back, which takes five times as long as decoding it, and its import takes as long as
that of pandas.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow

from dist_moe.errors import refused_by_library
from dist_moe.store.zarr_metadata import parsed

if TYPE_CHECKING:
    import zarr

ZSTD_LEVEL = 3
METADATA = "zarr.json"
ABSENT = 2**64 - 1
"""Place and length, in a shard's index, of a chunk that is not written: its values are 0."""
CHECKSUM_BYTES = 4


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Type, shape and split of one array."""

    dtype: np.dtype
    shape: tuple[int, ...]
    rows_per_file: int
    """Number of rows of the first axis in one file."""
    rows_per_chunk: int
    """Number of rows that are decoded together; equal to `rows_per_file` unless the array is `sharded`."""
    sharded: bool

    def file(self, index: int) -> str:
        """The key of a file within its array: 2 -> `"c/2/0/0"`."""
        return "/".join(["c", str(index), *("0" for _ in self.shape[1:])])

    @property
    def one_file(self) -> "ArraySpec":
        """An array that is one full file of this one."""
        return replace(self, shape=(self.rows_per_file, *self.shape[1:]))


def plain(dtype: Any, shape: Sequence[int], rows_per_file: int | None = None) -> ArraySpec:
    """An array with one chunk per file; without `rows_per_file` it is one file."""
    rows = rows_per_file or max(1, shape[0])
    return ArraySpec(np.dtype(dtype), tuple(shape), rows, rows, sharded=False)


def sharded(dtype: Any, shape: Sequence[int], rows_per_file: int) -> ArraySpec:
    """An array with one chunk per row, and many rows in a file."""
    return ArraySpec(np.dtype(dtype), tuple(shape), rows_per_file, 1, sharded=True)


@lru_cache
def array_metadata(spec: ArraySpec) -> bytes:
    """The zarr.json of an array."""
    files: dict[str, Any] = {}
    _create(spec, files)
    return bytes(files[METADATA].to_bytes())


@lru_cache
def parse_array_metadata(data: bytes) -> ArraySpec:
    """The spec in an array's zarr.json.

    Raises:
        UserError: it is not as this package writes it.
    """
    found = parsed(data, f"its {METADATA}")
    return ArraySpec(
        np.dtype(found.data_type), tuple(found.shape), found.file_shape[0], found.chunk_shape[0], found.is_sharded
    )


def encode_file(spec: ArraySpec, rows: np.ndarray) -> bytes:
    """The bytes of one file with these rows, at most `rows_per_file`; only an array's last file has fewer."""
    assert rows.dtype == spec.dtype, f"{rows.dtype} for {spec.dtype}"
    assert rows.shape[1:] == spec.shape[1:]
    assert 0 < len(rows) <= spec.rows_per_file
    files: dict[str, Any] = {}
    _create(spec.one_file, files)[: len(rows)] = rows
    return bytes(files[spec.file(0)].to_bytes())


def decode_rows(spec: ArraySpec, data: bytes, start: int, stop: int, what: str) -> np.ndarray:
    """Rows `start` to `stop` of a file, counted within it; `what` is the array's name in errors.

    Raises:
        UserError: the file holds something else.
    """
    rows = np.zeros((stop - start, *spec.shape[1:]), spec.dtype)
    with refused_by_library(f"{what} has a file that cannot be decoded", "restore it from a copy"):
        if not spec.sharded:
            rows[:] = _decoded(spec, memoryview(data))[start:stop]
            return rows
        for row, (place, length) in zip(rows, _index(spec, data)[start:stop].tolist(), strict=True):
            if (place, length) != (ABSENT, ABSENT):
                row[:] = _decoded(spec, memoryview(data)[place : place + length])[0]
    return rows


def _index(spec: ArraySpec, data: bytes) -> np.ndarray:
    """Place and length of each chunk in a shard, uint64 [rows, 2]; they are at its end, before their checksum."""
    size = spec.rows_per_file * 16
    return np.frombuffer(data, "<u8", 2 * spec.rows_per_file, len(data) - CHECKSUM_BYTES - size).reshape(-1, 2)


def _decoded(spec: ArraySpec, chunk: memoryview) -> np.ndarray:
    """The rows of one chunk."""
    shape = (spec.rows_per_chunk, *spec.shape[1:])
    num_bytes = spec.dtype.itemsize * math.prod(shape)
    values = pyarrow.decompress(chunk, decompressed_size=num_bytes, codec="zstd")
    return np.frombuffer(values, spec.dtype.newbyteorder("<")).reshape(shape)


def _create(spec: ArraySpec, files: dict[str, Any]) -> "zarr.Array":
    """The array, without rows yet; what it writes goes into `files`."""
    import zarr  # whoever only reads does without
    from zarr.codecs import ZstdCodec
    from zarr.storage import MemoryStore

    return zarr.create_array(
        MemoryStore(files),
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=(spec.rows_per_chunk, *spec.shape[1:]),
        shards=(spec.rows_per_file, *spec.shape[1:]) if spec.sharded else None,
        compressors=ZstdCodec(level=ZSTD_LEVEL),
        config={"write_empty_chunks": True},  # a file that is missing is damage, not zeros
    )
