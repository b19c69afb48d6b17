import numpy as np
import pytest

from dist_moe.errors import UserError
from dist_moe.store import MaskStore
from tests.unit.store.example import example_contents, write_contents, write_example

Q_BLE = np.arange(24, dtype=np.float32).reshape(3, 2, 4) / 7
NULL_B = np.array([4, 0, 9], np.int32)


@pytest.fixture
def path(tmp_path):
    contents = example_contents().changed(statistics={"q_value": Q_BLE, "null_count": NULL_B, "masks": Q_BLE})
    return write_contents(tmp_path / "masks.zarr", contents)


def test_statistics_come_back_bit_for_bit(path):
    statistics = MaskStore.open(path).statistics
    assert set(statistics) == {"q_value", "null_count", "masks"}
    assert statistics["q_value"][:].tobytes() == Q_BLE.tobytes()
    assert statistics["q_value"][1, 0, 2] == Q_BLE[1, 0, 2]
    assert statistics["null_count"][:].tobytes() == NULL_B.tobytes()
    assert statistics["null_count"][:].dtype == np.int32


def test_one_value_an_expert_is_a_column_of_the_batch_table(path):
    table = MaskStore.open(path).batch_table(1)
    assert table.columns.tolist()[6:] == ["masks", "q_value"]
    for line in table.itertuples():
        assert line.q_value == Q_BLE[1, line.layer, line.expert]


def test_a_store_without_statistics_has_none(tmp_path):
    store = MaskStore.open(write_example(tmp_path / "masks.zarr"))
    assert dict(store.statistics) == {}
    assert store.batch_table(0).shape[1] == 6


def test_a_damaged_statistic_is_refused(path):
    (shard,) = (file for file in (path / "statistic_null_count" / "c").rglob("*") if file.is_file())
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
    with pytest.raises(UserError, match="array statistic_null_count has changed since it was written"):
        MaskStore.open(path).check()


@pytest.mark.parametrize("values", [Q_BLE.astype(np.float64), Q_BLE[:2], Q_BLE[:, 0]])
def test_other_types_and_shapes_are_no_statistics(tmp_path, values):
    with pytest.raises(AssertionError):
        write_contents(tmp_path / "masks.zarr", example_contents().changed(statistics={"q_value": values}))
    assert not (tmp_path / "masks.zarr").exists()
