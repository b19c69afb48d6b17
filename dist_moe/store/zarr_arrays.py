"""Zarr v3 arrays as bytes: the contents of each file of an array, and back, with zarr-python on files in memory.

So a file's digest can be compared before anything is decoded, and a file is written completely by whoever has its rows.
Only the first axis is split. A plain array has one chunk per file; a sharded one has chunks of few rows, so that a row
can be decoded without the others of its file.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import zarr
from zarr.buffer.cpu import Buffer
from zarr.codecs import BytesCodec, Endian, ShardingCodec, ZstdCodec
from zarr.storage import MemoryStore, StorePath

from dist_moe.errors import UserError, refused_by_library, shown

ZSTD_LEVEL = 3
CHUNK_BYTES = 1 << 18
"""A chunk of so many takes little longer to decode than a task for it takes to come and go."""
CHUNKS_AT_ONCE = 1024
"""zarr-python's default of 1 makes a task of each chunk."""
METADATA = "zarr.json"
DECODES = threading.Lock()
"""One thread decodes at a time, as zarr-python's configuration is the same for all: beside a step on a GPU another
thread reads the next batch's mask."""


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
    """An array with many rows in a file, and chunks of as many rows as `CHUNK_BYTES` hold, or of one."""
    spec = ArraySpec(np.dtype(dtype), tuple(shape), rows_per_file, 1, sharded=True)
    most = min(rows_per_file, max(1, CHUNK_BYTES // (spec.dtype.itemsize * math.prod(spec.shape[1:]))))
    return replace(spec, rows_per_chunk=max(n for n in range(1, most + 1) if rows_per_file % n == 0))


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
    with refused_by_library(f"its {METADATA} is no array's", "it cannot be read"):
        array = zarr.open_array(MemoryStore({METADATA: Buffer.from_bytes(data)}), mode="r")
    codecs = (
        [*array.serializer.codecs]
        if isinstance(array.serializer, ShardingCodec)
        else [array.serializer, *array.compressors]
    )
    values, *others = codecs
    if not isinstance(values, BytesCodec) or values.endian == Endian.big or [*map(type, others)] != [ZstdCodec]:
        found = [codec.to_dict() for codec in codecs]
        raise UserError(f"its {METADATA} has the codecs {shown(found)}: expected little-endian bytes and zstd")
    file, chunk = array.shards or array.chunks, array.chunks
    if not array.shape or not file[1:] == chunk[1:] == array.shape[1:]:
        raise UserError(
            f"its {METADATA} has chunks {shown(chunk)} in files {shown(file)}: only the first axis is split"
        )
    return ArraySpec(array.dtype, array.shape, file[0], chunk[0], array.shards is not None)


def encode_file(spec: ArraySpec, rows: np.ndarray) -> bytes:
    """The bytes of one file with these rows, at most `rows_per_file`; only an array's last file has fewer."""
    assert rows.dtype == spec.dtype, f"{rows.dtype} for {spec.dtype}"
    assert rows.shape[1:] == spec.shape[1:]
    assert 0 < len(rows) <= spec.rows_per_file
    files: dict[str, Any] = {}
    _create(spec.one_file, files)[: len(rows)] = rows
    return bytes(files[spec.file(0)].to_bytes())


def decode_rows(spec: ArraySpec, files: Mapping[int, bytes], start: int, stop: int, what: str) -> np.ndarray:
    """Rows `start` to `stop`, from the files that have them, by number; `what` is the array's name in errors.

    Decoding several files together takes less time than one after the other, as zarr-python's threads meet once.

    Raises:
        UserError: a file holds something else.
    """
    if not all(files.values()):  # zarr-python takes it for one that was never written, whose values are 0
        raise UserError(f"{what} has a file that cannot be decoded (it is empty): restore it from a copy")
    stored: dict[str, Any] = {spec.file(number): Buffer.from_bytes(data) for number, data in files.items()}
    decoding = refused_by_library(f"{what} has a file that cannot be decoded", "restore it from a copy")
    with DECODES, zarr.config.set({"codec_pipeline.batch_size": CHUNKS_AT_ONCE}), decoding:
        array = zarr.Array(zarr.AsyncArray(_metadata(spec), StorePath(MemoryStore(stored, read_only=True))))
        return np.asarray(array[start:stop])


@lru_cache
def _metadata(spec: ArraySpec) -> Any:
    """As zarr-python reads it: opening an array takes a third of the time of reading a row."""
    files: dict[str, Any] = {METADATA: Buffer.from_bytes(array_metadata(spec))}
    return zarr.open_array(MemoryStore(files), mode="r").metadata


def _create(spec: ArraySpec, files: dict[str, Any]) -> zarr.Array:
    """The array, without rows yet; what it writes goes into `files`."""
    return zarr.create_array(
        MemoryStore(files),
        shape=spec.shape,
        dtype=spec.dtype,
        chunks=(spec.rows_per_chunk, *spec.shape[1:]),
        shards=(spec.rows_per_file, *spec.shape[1:]) if spec.sharded else None,
        compressors=ZstdCodec(level=ZSTD_LEVEL),
        config={"write_empty_chunks": True},  # a file that is missing is damage, not zeros
    )
