"""The part of Zarr v3 that a mask store uses, as pure functions between bytes and NumPy arrays.

Only the first axis is split. A plain array has one chunk a file; a sharded one has many chunks in a file, so that a row
is decoded without its neighbours. Any Zarr v3 reader reads what is written here, and tests compare with zarr-python.
Our own, because a row then takes some tenths of a millisecond and no thread: zarr-python takes 3 to 5 ms to open an
array and read a row, and half a second to write a thousand small chunks.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numcodecs.zstd import Zstd

ZSTD_LEVEL = 3
METADATA = "zarr.json"
MISSING_CHUNK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Type, shape and cut of one array."""

    dtype: np.dtype
    shape: tuple[int, ...]
    rows_per_file: int
    """How much of the first axis is in one file."""
    rows_per_chunk: int
    """How much of it is decoded at once; the same as `rows_per_file` unless `sharded`."""
    sharded: bool

    @property
    def num_files(self) -> int:
        return -(-self.shape[0] // self.rows_per_file)

    def file(self, index: int) -> str:
        """The key of a file within its array: 2 -> `"c/2/0/0"`."""
        return "/".join(["c", str(index), *("0" for _ in self.shape[1:])])


def plain(dtype: Any, shape: Sequence[int], rows_per_file: int | None = None) -> ArraySpec:
    """An array with one chunk a file; without `rows_per_file` it is one file."""
    rows = rows_per_file or max(1, shape[0])
    return ArraySpec(np.dtype(dtype), tuple(shape), rows, rows, sharded=False)


def sharded(dtype: Any, shape: Sequence[int], rows_per_file: int) -> ArraySpec:
    """An array with one chunk a row, and many rows in a file."""
    return ArraySpec(np.dtype(dtype), tuple(shape), rows_per_file, 1, sharded=True)


def array_metadata(spec: ArraySpec) -> bytes:
    """The array's zarr.json."""
    codecs: list[dict[str, Any]] = [
        {"name": "bytes", "configuration": {"endian": "little"}} if spec.dtype.itemsize > 1 else {"name": "bytes"},
        {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}},
    ]
    if spec.sharded:
        index_codecs = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        sharding = {
            "chunk_shape": [spec.rows_per_chunk, *spec.shape[1:]],
            "codecs": codecs,
            "index_codecs": index_codecs,
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": sharding}]
    metadata = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(spec.shape),
        "data_type": spec.dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [spec.rows_per_file, *spec.shape[1:]]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": False if spec.dtype == np.bool_ else 0.0 if spec.dtype.kind == "f" else 0,
        "codecs": codecs,
        "attributes": {},
        "storage_transformers": [],
    }
    return json.dumps(metadata, indent=2).encode()


def parse_array_metadata(data: bytes) -> ArraySpec:
    """The spec in an array's zarr.json, as written by `array_metadata` or, in format version 1, by zarr-python."""
    metadata = json.loads(data)
    rows_per_file = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
    codecs = metadata["codecs"]
    is_sharded = codecs[0]["name"] == "sharding_indexed"
    rows_per_chunk = rows_per_file
    if is_sharded:
        sharding = codecs[0]["configuration"]
        rows_per_chunk, codecs = sharding["chunk_shape"][0], sharding["codecs"]
        assert sharding.get("index_location", "end") == "end"
    assert [codec["name"] for codec in codecs] == ["bytes", "zstd"], f"codecs {codecs}"
    dtype = np.dtype(metadata["data_type"])
    return ArraySpec(dtype, tuple(metadata["shape"]), rows_per_file, rows_per_chunk, is_sharded)


def encode_file(spec: ArraySpec, rows: np.ndarray) -> bytes:
    """One file with these rows, at most `rows_per_file`; only an array's last file has fewer."""
    assert rows.dtype == spec.dtype, f"{rows.dtype} for {spec.dtype}"
    assert rows.shape[1:] == spec.shape[1:]
    assert 0 < len(rows) <= spec.rows_per_file
    codec = Zstd(level=ZSTD_LEVEL)
    if not spec.sharded:
        return bytes(codec.encode(_padded(rows, spec.rows_per_file)))
    chunks_per_file = spec.rows_per_file // spec.rows_per_chunk
    index = np.full((chunks_per_file, 2), MISSING_CHUNK, "<u8")
    parts, offset = [], 0
    for chunk, start in enumerate(range(0, len(rows), spec.rows_per_chunk)):
        part = bytes(codec.encode(_padded(rows[start : start + spec.rows_per_chunk], spec.rows_per_chunk)))
        index[chunk] = offset, len(part)
        parts.append(part)
        offset += len(part)
    checksum = google_crc32c.value(index.tobytes()).to_bytes(4, "little")
    return b"".join([*parts, index.tobytes(), checksum])


def decode_rows(spec: ArraySpec, data: bytes, start: int, stop: int) -> np.ndarray:
    """Rows `start` to `stop` of a file, counted within it."""
    codec = Zstd()
    row_shape = spec.shape[1:]
    rows = np.empty((stop - start, *row_shape), spec.dtype)
    num_chunks = spec.rows_per_file // spec.rows_per_chunk
    index = [[0, len(data)]]
    if spec.sharded:
        end = len(data) - 4
        index = np.frombuffer(data[end - 16 * num_chunks : end], "<u8").reshape(num_chunks, 2).tolist()
    for chunk in range(start // spec.rows_per_chunk, -(-stop // spec.rows_per_chunk)):
        first = chunk * spec.rows_per_chunk
        here = slice(max(start, first), min(stop, first + spec.rows_per_chunk))
        offset, size = index[chunk]
        target = rows[here.start - start : here.stop - start]
        if offset == MISSING_CHUNK:
            target[:] = 0
            continue
        decoded = np.frombuffer(codec.decode(memoryview(data)[offset : offset + size]), spec.dtype.newbyteorder("<"))
        target[:] = decoded.reshape(-1, *row_shape)[here.start - first : here.stop - first]
    return rows


def _padded(rows: np.ndarray, num_rows: int) -> bytes:
    data = np.ascontiguousarray(rows, rows.dtype.newbyteorder("<")).tobytes()
    return data + bytes((num_rows - len(rows)) * (len(data) // len(rows)))
