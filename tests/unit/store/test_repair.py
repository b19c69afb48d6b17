"""What follows from the counts is restored to the last byte; what does not is refused, and nothing is touched."""

import numpy as np
import pytest

from dist_moe.errors import UserError
from dist_moe.store import MaskStore, write_store
from dist_moe.store.files import Damage
from dist_moe.store.repair import repair
from tests.unit.store.example import example_contents, tiled_contents
from tests.unit.store.killed_writers import visible

DERIVED = ["masks", "batch_num_unsafe_experts", "batch_mask_hashes", "a_safe_n", "a_unsafe_n", "risk_diff"]
SOURCES = ["prompt_counts", "prompt_tokens", "prompt_ids", "prompt_unsafe", "prompt_batch", "batch_ids"]


@pytest.fixture
def path(tmp_path):
    write_store(tmp_path / "masks.zarr", *tiled_contents(50))
    return tmp_path / "masks.zarr"


def hurt(path, array, file):
    target = path / array / file
    data = bytearray(target.read_bytes())
    data[len(data) // 2] ^= 1
    target.write_bytes(data)


def repaired(path, damaged_arrays):
    expected = visible(path)
    for array, file in damaged_arrays:
        hurt(path, array, file)
    left = visible(path)
    done = repair(MaskStore.open(path), path.with_name("new.zarr"))
    assert visible(path) == left
    assert visible(path.with_name("new.zarr")) == expected
    assert done.exact
    return done


@pytest.mark.parametrize("array", DERIVED)
def test_what_follows_from_counts(path, array):
    file = "c/1/0/0" if array in ("masks", "a_safe_n", "a_unsafe_n", "risk_diff") else "c/1"
    file = "c/1/0" if array == "batch_mask_hashes" else file
    done = repaired(path, [(array, file)])
    assert done.damage == (Damage(array, file, "is not as it was written"),)
    assert done.recomputed == (array,)


def test_everything_that_follows_from_counts_and_plan_at_once(path):
    files = [(array, "SHA256SUMS") for array in DERIVED] + [(array, "zarr.json") for array in SOURCES]
    assert set(repaired(path, files).recomputed) <= set(DERIVED)


@pytest.mark.parametrize("array", DERIVED + SOURCES)
@pytest.mark.parametrize("file", ["SHA256SUMS", "zarr.json"])
def test_metadata_and_lists_are_put_back_without_computing(path, array, file):
    assert repaired(path, [(array, file)]).recomputed == ()


def test_a_lost_file_and_an_added_one(path):
    expected = visible(path)
    (path / "masks" / "c" / "0" / "0" / "0").unlink()
    (path / "risk_diff" / "c" / "9").mkdir()
    (path / "risk_diff" / "c" / "9" / "x").write_bytes(b"x")
    done = repair(MaskStore.open(path), path.with_name("new.zarr"))
    assert [each.how for each in done.damage] == ["is missing", "does not belong to the store"] or [
        each.how for each in done.damage
    ] == ["does not belong to the store", "is missing"]
    assert visible(path.with_name("new.zarr")) == expected


@pytest.mark.parametrize("array", ["prompt_counts", "prompt_tokens", "prompt_ids", "batch_ids", "statistic_q"])
def test_sources_cannot_be_computed(tmp_path, array):
    path = tmp_path / "masks.zarr"
    q_BLE = np.zeros((3, 2, 4), np.float32)
    write_store(path, *example_contents().changed(statistics={"q": q_BLE}))
    (file,) = ((each.parent, each.name) for each in (path / array / "c").rglob("*") if each.is_file())
    hurt(path, file[0], file[1])
    with pytest.raises(UserError, match=f"cannot be repaired: {array} cannot be computed from the rest"):
        repair(MaskStore.open(path), path.with_name("new.zarr"))
    assert not path.with_name("new.zarr").exists()
