"""Whatever is asked of a stored array, NumPy gives the same of the whole one."""

import itertools

import numpy as np
import pytest

from dist_moe.store import rows as rows_module
from dist_moe.store.rows import MaskRows, PromptRows, Rows, StoredRows
from dist_moe.store.zarr_arrays import ArraySpec, encode_file, plain, sharded

NUM_PROMPTS_B = np.array([2, 3, 0, 1, 3, 3, 2])
STARTS_B1 = np.append(0, np.cumsum(NUM_PROMPTS_B))


def stored(values: np.ndarray, spec: ArraySpec) -> StoredRows:
    rows = spec.rows_per_file
    files = {spec.file(i): encode_file(spec, values[i * rows : (i + 1) * rows]) for i in range(-(-len(values) // rows))}
    return StoredRows(spec, files.__getitem__, "it")


def cases() -> dict[str, tuple[Rows, np.ndarray]]:
    rng = np.random.default_rng(0)
    rates = rng.random((7, 3, 5))
    masks = rng.random((7, 3, 13)) < 0.3
    packed = np.packbits(masks, axis=-1)
    counts = rng.integers(0, 99, (STARTS_B1[-1], 3, 5)).astype(np.int32)
    padded = np.zeros((7, 3, 3, 5), np.int32)
    for batch, (start, stop) in enumerate(itertools.pairwise(STARTS_B1)):
        padded[batch, : stop - start] = counts[start:stop]
    return {
        "rates": (stored(rates, sharded(np.float64, rates.shape, 3)), rates),
        "masks": (MaskRows(stored(packed, plain(np.uint8, packed.shape, 3)), 13), masks),
        "prompts": (PromptRows(stored(padded, sharded(np.int32, padded.shape, 3)), STARTS_B1), counts),
    }


KEYS = [
    *(0, 3, 6, -1, -7, np.int64(2)),
    *(slice(None), slice(2, 5), slice(5, 2), slice(1, None, 2), slice(-3, None), slice(0, 0), slice(3, 99)),
    *((2, 1), (2, 1, 4), (slice(None), 1), (slice(None), 2, 4), (slice(1, 6, 2), slice(1, 3)), (slice(4, 4), 1)),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("name", ["rates", "masks", "prompts"])
def test_as_numpy(name, key):
    rows, values = cases()[name]
    found = rows[key]
    assert rows.shape == values.shape
    assert rows.dtype == values.dtype == np.asarray(found).dtype
    np.testing.assert_array_equal(found, values[key])
    assert np.shape(found) == values[key].shape


@pytest.mark.parametrize("name", ["rates", "masks", "prompts"])
def test_out_of_range(name):
    rows, _ = cases()[name]
    for key in (len(rows), -len(rows) - 1):
        with pytest.raises(IndexError):
            rows[key]


def test_a_column_is_read_file_by_file():
    rows, _ = cases()["rates"]
    assert list(rows.slabs(0, 7)) == [(0, 3), (3, 6), (6, 7)]
    assert list(rows.slabs(2, 5)) == [(2, 3), (3, 5)]


def test_files_are_read_together_as_many_as_fit(monkeypatch):
    rows, values = cases()["rates"]
    row_bytes = values[0].nbytes
    expected = {7: [(0, 7)], 6: [(0, 6), (6, 7)], 5: [(0, 3), (3, 7)], 3: [(0, 3), (3, 6), (6, 7)]}
    for fit, blocks in (expected | {2: expected[3], 0: expected[3]}).items():
        monkeypatch.setattr(rows_module, "BLOCK_BYTES", fit * row_bytes)
        assert list(rows.blocks(0, 7)) == blocks, fit
        np.testing.assert_array_equal(rows[1:], values[1:])
    assert list(rows.blocks(4, 4)) == []
