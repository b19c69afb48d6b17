"""Stores behind a URL, read with fsspec; here from a file system in memory."""

import numpy as np
import pytest

from dist_moe.errors import UserError
from dist_moe.store import MaskStore
from tests.unit.store.example import example_contents, write_example


@pytest.fixture
def url(tmp_path, bucket):
    path = write_example(tmp_path / "masks.zarr")
    bucket.files.put(str(path), f"{bucket.root}/masks.zarr", recursive=True)
    return f"{bucket.url}/masks.zarr"


def test_a_url_is_read_as_a_path(url):
    store, contents = MaskStore.open(url), example_contents()
    assert store.path == url
    np.testing.assert_array_equal(store.masks[1], contents.results.masks.masks_BLE[1])
    assert store.batch_ids == contents.plan.index.ids
    store.check()


def test_counts_are_looked_for_beside_it(url, bucket, tmp_path):
    store, place = MaskStore.open(url), f"{bucket.url}/counts.zarr"
    with pytest.raises(UserError, match=f"what they were selected from is not at {place}: put it"):
        store.batch_table(0)
    bucket.files.put(str(tmp_path / "counts.zarr"), f"{bucket.root}/counts.zarr", recursive=True)
    found = MaskStore.open(url).counts
    assert found.path == place
    assert found.prompt_counts[:].tobytes() == example_contents().counts.counts_PLE.astype(np.int32).tobytes()


def test_damage_behind_a_url(url, bucket):
    files = bucket.files
    (key,) = (key for key in files.find(f"{bucket.root}/masks.zarr/masks/c"))
    whole = files.cat_file(key)
    store = MaskStore.open(url)
    files.pipe_file(key, whole[:-1])
    with pytest.raises(UserError, match=f"{url} is damaged: array masks has changed since it was written"):
        store.check()
    files.rm(key)
    with pytest.raises(UserError, match="array masks has changed since it was written"):
        MaskStore.open(url).masks[0]
    files.pipe_file(key, whole)
    files.pipe_file(key[:-1] + "9", b"")
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
