"""Results are cut by batch, and only results that are what the plan says are written."""

import dataclasses

import numpy as np
import pytest

from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.table import RiskTable
from dist_moe.store import StoreWriter, write_store
from tests.unit.store.example import COUNTS_PLE, TABLES, example_contents, tiled_contents

Q_BLE = np.zeros((3, 2, 4), np.float32)
EXAMPLE = example_contents().changed(statistics={"q": Q_BLE})
COUNTS, RISK = EXAMPLE.results.counts, EXAMPLE.results.risk


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
def test_a_cut_has_the_prompts_and_rows_of_its_batches(start, stop):
    batch_of_P = np.array([0, 0, 2, 2, 2, 2])  # and one batch without a prompt
    plan, whole = EXAMPLE.changed(batch_of_P=batch_of_P, statistics={"n": np.arange(3, dtype=np.int32)})
    cut, prompts = whole.of(plan, range(start, stop)), (batch_of_P >= start) & (batch_of_P < stop)
    np.testing.assert_array_equal(cut.counts.counts_PLE, COUNTS_PLE[prompts])
    np.testing.assert_array_equal(cut.counts.tokens_P, COUNTS.tokens_P[prompts])
    assert cut.counts.experts_per_token == 2
    for name, table in TABLES.items():
        np.testing.assert_array_equal(cut.counts.tables[name], table[prompts])
    np.testing.assert_array_equal(cut.risk.a_safe_n_BLE, RISK.a_safe_n_BLE[start:stop])
    np.testing.assert_array_equal(cut.risk.a_unsafe_n_BLE, RISK.a_unsafe_n_BLE[start:stop])
    np.testing.assert_array_equal(cut.masks.masks_BLE, EXAMPLE.results.masks.masks_BLE[start:stop])
    assert cut.statistics["n"].tolist() == list(range(start, stop))


@pytest.mark.parametrize(
    "change",
    [
        {"counts": COUNTS.of(slice(5))},
        {"counts": RoutingCounts(COUNTS.counts_PLE[:, :1], COUNTS.tokens_P, 2, TABLES)},
        {"counts": RoutingCounts(COUNTS.counts_PLE[:, :, :1], COUNTS.tokens_P, 2, TABLES)},
        {"counts": dataclasses.replace(COUNTS, experts_per_token=3)},
        {"counts": dataclasses.replace(COUNTS, tables={})},
        {"counts": dataclasses.replace(COUNTS, tables=TABLES | {"more": TABLES["gates"]})},
        {"counts": dataclasses.replace(COUNTS, tables=TABLES | {"gates": TABLES["gates"].astype(np.float64)})},
        {"counts": dataclasses.replace(COUNTS, tables=TABLES | {"gates": TABLES["gates"][:, :1]})},
        {"risk": RiskTable(RISK.a_safe_n_BLE[:2], RISK.a_unsafe_n_BLE[:2])},
        {"risk": RiskTable(RISK.a_safe_n_BLE[:, :1], RISK.a_unsafe_n_BLE[:, :1])},
        {"masks": ExpertMasks(np.zeros((2, 2, 4), bool))},
        {"masks": ExpertMasks(np.zeros((3, 2, 5), bool))},  # its bits would fill as many bytes
        {"statistics": {}},
        {"statistics": {"q": Q_BLE, "more": Q_BLE}},
        {"statistics": {"q": Q_BLE.astype(np.float64)}},
        {"statistics": {"q": Q_BLE[:2]}},
        {"statistics": {"q": Q_BLE[:, :1]}},
    ],
)
def test_results_that_are_not_of_the_plan_are_not_written(tmp_path, change):
    results = dataclasses.replace(EXAMPLE.results, **change)
    with pytest.raises(AssertionError):
        write_store(tmp_path / "whole.zarr", EXAMPLE.plan, results)
    assert not (tmp_path / "whole.zarr").exists()
    writer = StoreWriter(tmp_path / "part.zarr", EXAMPLE.plan)
    with pytest.raises(AssertionError):
        writer.write(range(3), results)
    assert writer.missing == [range(3)]
    assert not (tmp_path / "part.zarr" / "masks").exists()


def test_more_results_than_the_plan_has_batches_are_not_cut_silently(tmp_path):
    with pytest.raises(AssertionError):
        write_store(tmp_path / "masks.zarr", example_contents().plan, tiled_contents(2).results)
    assert not list(tmp_path.iterdir())
