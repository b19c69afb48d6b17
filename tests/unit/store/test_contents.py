"""Results are cut by batch, and only results that are what the plan says are written."""

import dataclasses

import numpy as np
import pytest

from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.masks import ExpertMasks
from dist_moe.store import StoreWriter, write_store
from tests.unit.store.example import COUNTS_PLE, TABLES, example_contents, tiled_contents

Q_BLE = np.zeros((3, 2, 4), np.float32)
EXAMPLE = example_contents().changed(statistics={"q": Q_BLE})
COUNTS = EXAMPLE.counts


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)])
def test_a_cut_has_the_prompts_and_rows_of_its_batches(start, stop):
    # one batch is without a prompt
    changed = EXAMPLE.changed(starts_B1=np.array([0, 2, 2, 6]), statistics={"n": np.arange(3, dtype=np.int32)})
    batches, prompts = range(start, stop), np.isin(np.array([0, 0, 2, 2, 2, 2]), range(start, stop))
    counts = changed.counts_plan.cut(changed.counts, batches)
    np.testing.assert_array_equal(counts.counts_PLE, COUNTS_PLE[prompts])
    np.testing.assert_array_equal(counts.tokens_P, COUNTS.tokens_P[prompts])
    assert counts.experts_per_token == 2
    for name, table in TABLES.items():
        np.testing.assert_array_equal(counts.tables[name], table[prompts])
    cut = changed.plan.cut(changed.results, batches)
    np.testing.assert_array_equal(cut.masks.masks_BLE, EXAMPLE.results.masks.masks_BLE[start:stop])
    np.testing.assert_array_equal(cut.signs_B3, EXAMPLE.results.signs_B3[start:stop])
    assert cut.statistics["n"].tolist() == list(range(start, stop))


def refused(tmp_path, plan, results):
    with pytest.raises(AssertionError):
        write_store(tmp_path / "whole.zarr", plan, results)
    assert not (tmp_path / "whole.zarr").exists()
    writer = StoreWriter(tmp_path / "part.zarr", plan)
    with pytest.raises(AssertionError):
        writer.write(range(3), results)
    assert writer.missing == [range(3)]
    assert not any((tmp_path / "part.zarr" / name).exists() for name in plan.specs)


@pytest.mark.parametrize(
    "counts",
    [
        COUNTS.of(slice(5)),
        RoutingCounts(COUNTS.counts_PLE[:, :1], COUNTS.tokens_P, 2, TABLES),
        RoutingCounts(COUNTS.counts_PLE[:, :, :1], COUNTS.tokens_P, 2, TABLES),
        dataclasses.replace(COUNTS, experts_per_token=3),
        dataclasses.replace(COUNTS, tables={}),
        dataclasses.replace(COUNTS, tables=TABLES | {"more": TABLES["gates"]}),
        dataclasses.replace(COUNTS, tables=TABLES | {"gates": TABLES["gates"].astype(np.float64)}),
        dataclasses.replace(COUNTS, tables=TABLES | {"gates": TABLES["gates"][:, :1]}),
    ],
)
def test_counts_that_are_not_of_the_plan_are_not_written(tmp_path, counts):
    refused(tmp_path, EXAMPLE.counts_plan, counts)


@pytest.mark.parametrize(
    "change",
    [
        {"masks": ExpertMasks(np.zeros((2, 2, 4), bool))},
        {"masks": ExpertMasks(np.zeros((3, 2, 5), bool)), "signs_B3": np.zeros((3, 3), np.int32)},  # as many bytes
        {"masks": ExpertMasks(np.zeros((3, 2, 4), bool))},  # its signs are of others
        {"signs_B3": EXAMPLE.results.signs_B3[:2]},
        {"signs_B3": EXAMPLE.results.signs_B3.astype(np.int64)},
        {"statistics": {}},
        {"statistics": {"q": Q_BLE, "more": Q_BLE}},
        {"statistics": {"q": Q_BLE.astype(np.float64)}},
        {"statistics": {"q": Q_BLE[:2]}},
        {"statistics": {"q": Q_BLE[:, :1]}},
    ],
)
def test_masks_that_are_not_of_the_plan_are_not_written(tmp_path, change):
    refused(tmp_path, EXAMPLE.plan, dataclasses.replace(EXAMPLE.results, **change))


def test_more_results_than_the_plan_has_batches_are_not_cut_silently(tmp_path):
    one, more = example_contents(), tiled_contents(2)
    for plan, results in ((one.counts_plan, more.counts), (one.plan, more.results)):
        with pytest.raises(AssertionError):
            write_store(tmp_path / "some.zarr", plan, results)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("revision", "previous"), [(0, "a1"), (1, None), (-1, None)])
def test_a_revision_names_the_one_before_it_and_the_first_none(revision, previous):
    with pytest.raises(AssertionError):
        dataclasses.replace(EXAMPLE.plan, revision=revision, previous=previous)
