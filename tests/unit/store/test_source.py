"""Stores behind a URL, read with fsspec; here from its file system in memory."""

import fsspec
import numpy as np
import pytest

from dist_moe.errors import UserError
from dist_moe.store import MaskStore
from tests.unit.store.example import example_contents, write_example

URL = "memory://bucket/masks.zarr"


@pytest.fixture
def url(tmp_path):
    path = write_example(tmp_path / "masks.zarr")
    memory = fsspec.filesystem("memory")
    memory.put(str(path), "/bucket/masks.zarr", recursive=True)
    yield URL
    memory.rm("/bucket", recursive=True)


def test_a_url_is_read_as_a_path(url):
    store, contents = MaskStore.open(url), example_contents()
    assert store.path == URL
    np.testing.assert_array_equal(store.masks[1], contents.results.masks.masks_BLE[1])
    assert store.batch_ids == contents.plan.index.ids
    store.check()


def test_counts_are_looked_for_beside_it(url, tmp_path):
    memory, store = fsspec.filesystem("memory"), MaskStore.open(url)
    with pytest.raises(UserError, match=r"what they were selected from is not at memory://bucket/counts\.zarr: put it"):
        store.batch_table(0)
    memory.put(str(tmp_path / "counts.zarr"), "/bucket/counts.zarr", recursive=True)
    found = MaskStore.open(url).counts
    assert found.path == "memory://bucket/counts.zarr"
    assert found.prompt_counts[:].tobytes() == example_contents().counts.counts_PLE.astype(np.int32).tobytes()


def test_damage_behind_a_url(url):
    memory = fsspec.filesystem("memory")
    (key,) = (key for key in memory.find("/bucket/masks.zarr/masks/c"))
    whole = memory.cat_file(key)
    store = MaskStore.open(url)
    memory.pipe_file(key, whole[:-1])
    with pytest.raises(UserError, match=f"{URL} is damaged: array masks has changed since it was written"):
        store.check()
    memory.rm(key)
    with pytest.raises(UserError, match="array masks has changed since it was written"):
        MaskStore.open(url).masks[0]
    memory.pipe_file(key, whole)
    memory.pipe_file(key[:-1] + "9", b"")
    with pytest.raises(UserError, match="array masks has changed since it was written"):
        MaskStore.open(url).check()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nowhere/masks.zarr", "no mask store at memory://nowhere/masks.zarr"),
        (
            "nosuch://bucket/masks.zarr",
            "cannot read nosuch://bucket/masks.zarr (ValueError: Protocol not known: nosuch",
        ),
        ("s3://bucket/masks.zarr", "cannot read s3://bucket/masks.zarr (ImportError: Install s3fs to access S3"),
        ("zip://masks.zarr::/nowhere.zip", "cannot read zip://masks.zarr::/nowhere.zip (FileNotFoundError"),
        (f"zip://masks.zarr::{__file__}", "(BadZipFile: File is not a zip file)"),
        ("ftp://localhost:1/masks.zarr", "cannot read ftp://localhost:1/masks.zarr (ConnectionRefusedError"),
        ("data://masks.zarr", "cannot read data://masks.zarr (ValueError"),
    ],
)
def test_a_url_that_leads_nowhere_is_one_line(url, message):
    with pytest.raises(UserError) as error:
        MaskStore.open(url)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
