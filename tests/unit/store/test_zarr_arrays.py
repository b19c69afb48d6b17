"""Arrays as files, against zarr-python on a directory, both ways."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

from dist_moe.errors import UserError
from dist_moe.store.zarr_arrays import (
    ArraySpec,
    array_metadata,
    decode_rows,
    encode_file,
    parse_array_metadata,
    plain,
    sharded,
)

SPECS = [
    plain(np.uint8, (11,)),
    plain(np.bool_, (7,)),
    plain(np.int64, (10, 3), 4),
    plain(np.uint8, (10, 2, 3), 4),
    plain(np.float32, (3,), 4),
    sharded(np.float64, (10, 2, 3), 4),
    sharded(np.int32, (9, 2, 2, 3), 3),
    sharded(np.float32, (2, 2, 5), 4),
    ArraySpec(np.dtype(np.int32), (9, 2, 3), rows_per_file=4, rows_per_chunk=1, sharded=True),
    ArraySpec(np.dtype(np.float32), (9, 2, 3), rows_per_file=6, rows_per_chunk=2, sharded=True),
]


def values_of(spec: ArraySpec) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 2 if spec.dtype == np.bool_ else 100, spec.shape)
    return values.astype(spec.dtype)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_zarr_reads_what_is_written_here(tmp_path, spec):
    values = values_of(spec)
    (tmp_path / "zarr.json").write_bytes(array_metadata(spec))
    for index in range(-(-spec.shape[0] // spec.rows_per_file)):
        path = tmp_path / spec.file(index)
        path.parent.mkdir(parents=True)
        path.write_bytes(encode_file(spec, values[index * spec.rows_per_file : (index + 1) * spec.rows_per_file]))
    array = zarr.open_array(tmp_path, mode="r", zarr_format=3)
    assert array[:].dtype == spec.dtype
    assert array[:].tobytes() == values.tobytes()
    assert parse_array_metadata(array_metadata(spec)) == spec


def test_chunks_are_of_a_quarter_of_a_mebibyte_or_of_a_row():
    def rows(*shape: int, per_file: int) -> int:
        return sharded(np.int32, shape, per_file).rows_per_chunk

    assert rows(4000, 16, 8, 32, per_file=64) == 16
    assert rows(4000, 16, 48, 128, per_file=64) == 1
    assert rows(30, 16, 8, 32, per_file=30) == 15  # all chunks of a file have as many rows
    assert rows(10, 1, 1, 1, per_file=10) == 10


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_what_zarr_writes_is_read_here(tmp_path, spec):
    values = values_of(spec)
    if len(values) > 1:
        values[1] = 0  # zarr-python leaves out what is all zeros
    chunks, shards = (spec.rows_per_chunk, *spec.shape[1:]), (spec.rows_per_file, *spec.shape[1:])
    array = zarr.create_array(
        tmp_path, shape=spec.shape, dtype=spec.dtype, chunks=chunks, shards=shards if spec.sharded else None
    )
    array[:] = values
    found = parse_array_metadata((tmp_path / "zarr.json").read_bytes())
    assert found == spec
    for row in range(len(values)):
        index = row // spec.rows_per_file
        data = (tmp_path / spec.file(index)).read_bytes()
        np.testing.assert_array_equal(decode_rows(found, {index: data}, row, row + 1, "it")[0], values[row])


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"compressors": zarr.codecs.GzipCodec()}, "has the codecs [{'name': 'bytes',"),
        ({"compressors": None}, "expected little-endian bytes and zstd"),
        ({"serializer": zarr.codecs.BytesCodec(endian="big")}, "{'endian': 'big'}"),
        ({"shards": (4, 2), "compressors": zarr.codecs.GzipCodec()}, "expected little-endian bytes and zstd"),
        ({"chunks": (2, 1)}, "only the first axis is split"),
        ({"zarr_format": 2}, None),
    ],
)
def test_other_forms_are_refused(tmp_path, form, said):
    """What cannot be decoded is not decoded as something else."""
    zarr.create_array(tmp_path, **{"shape": (8, 2), "dtype": np.int32, "chunks": (1, 2)} | form)
    file = tmp_path / ("zarr.json" if said else ".zarray")
    with pytest.raises(UserError, match=re.escape(said or "is no array's")):
        parse_array_metadata(file.read_bytes())


@pytest.mark.parametrize("spec", [*SPECS[3:6:2], *SPECS[-2:]], ids=str)
def test_a_file_of_something_else_is_refused(spec):
    """A cut file, and one of other values, whose digests are right."""
    data = encode_file(spec, values_of(spec)[:4])
    for wrong in (data[:-1], data[: len(data) // 2], b"", data[4:], bytes(len(data))):
        with pytest.raises(UserError, match="it has a file that cannot be decoded"):
            decode_rows(spec, {0: wrong}, 0, 4, "it")


@pytest.mark.parametrize("spec", [*SPECS[3:6:2], *SPECS[-2:]], ids=str)
def test_any_run_of_rows(spec):
    values = values_of(spec)[:4]
    data = encode_file(spec, values)
    for start in range(4):
        for stop in range(start, 5):
            np.testing.assert_array_equal(decode_rows(spec, {0: data}, start, stop, "it"), values[start:stop])


def test_threads_that_read_files_of_one_shape_get_their_own():
    spec = sharded(np.int32, (2, 8, 5), 2)
    values = [np.full(spec.shape, number, np.int32) for number in range(4)]
    files = [encode_file(spec, each) for each in values]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(lambda i: decode_rows(spec, {0: files[i % 4]}, i % 2, i % 2 + 1, "x"), range(400))
        for i, rows in enumerate(found):
            np.testing.assert_array_equal(rows, values[i % 4][:1])
