"""Stores of format version 1 still open, give the same answers, and are checked as well."""

import numpy as np
import pytest

from dist_moe.errors import UserError
from dist_moe.report import views
from dist_moe.stats.masks import ExpertMasks
from dist_moe.store import MaskStore, write_store
from tests.unit.store.example import example_contents
from tests.unit.store.version_1 import write_version_1


@pytest.fixture
def stores(tmp_path):
    # The second batch's mask is empty: zarr-python stores no chunk for it.
    masks_BLE = example_contents().results.masks.masks_BLE.copy()
    masks_BLE[1] = False
    contents = example_contents().changed(masks=ExpertMasks(masks_BLE))
    write_store(tmp_path / "two.zarr", *contents)
    one = MaskStore.open(write_version_1(tmp_path / "one.zarr", *contents))
    return one, MaskStore.open(tmp_path / "two.zarr")


def test_both_versions_hold_the_same(stores):
    one, two = stores
    assert (one.version, two.version) == (1, 2)
    for name in ("masks", "risk_diff", "a_safe_n", "a_unsafe_n", "prompt_counts"):
        rows, others = getattr(one, name), getattr(two, name)
        assert rows.shape == others.shape
        assert rows[:].dtype == others[:].dtype
        assert rows[:].tobytes() == others[:].tobytes()
        np.testing.assert_array_equal(rows[1], others[1])
        np.testing.assert_array_equal(rows[1:, 1, 3], others[1:, 1, 3])
    assert one.batches == two.batches
    assert one.prompts.equals(two.prompts)
    assert one.aggregated.equals(two.aggregated)
    assert dict(one.statistics) == {}
    assert views.overlap(one).facts == views.overlap(two).facts


def test_damage_is_found(stores):
    one, _ = stores
    one.check()
    shard = one.path / "risk_diff" / "c" / "0" / "0" / "0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 4
    shard.write_bytes(data)
    again = MaskStore.open(one.path)
    assert again.masks[0].sum() == 1
    for use in (again.check, lambda: again.risk_diff[0]):
        with pytest.raises(UserError, match="array risk_diff is not as it was written"):
            use()
