"""Stores that are written in parts: the same bytes as from one writer, whoever wrote what, and whoever was killed."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_moe.errors import UserError
from dist_moe.rules.threshold_top_k import ThresholdTopK
from dist_moe.store import MaskStore, StoreWriter, write_store, zarr_arrays
from dist_moe.store.layout import batches_per_file
from tests.unit.store.example import tiled_contents
from tests.unit.store.killed_writers import visible

CONTENTS = tiled_contents(50)  # 150 batches: three files of each array


def write(writer, steps):
    for batches in steps:
        writer.write(batches, CONTENTS.plan.cut(CONTENTS.results, batches))


def test_parts_in_any_order_are_the_store_of_one_writer(tmp_path):
    write_store(tmp_path / "one.zarr", CONTENTS.plan, CONTENTS.results)
    path = tmp_path / "parts.zarr"
    one, other = StoreWriter(path, CONTENTS.plan), StoreWriter(path, CONTENTS.plan)
    assert one.missing == [range(64), range(64, 128), range(128, 150)]
    write(one, one.missing[2:])
    write(other, one.missing[:1])
    with pytest.raises(UserError, match="is incomplete: batches 64 to 127 and 0 others are not written yet"):
        one.seal()
    with pytest.raises(UserError, match="is incomplete, because writing it was interrupted: run the analysis again"):
        MaskStore.open(path)
    write(other, other.missing)
    one.seal()
    assert visible(path) == visible(tmp_path / "one.zarr")
    other.seal()
    assert visible(path) == visible(tmp_path / "one.zarr")
    assert not (path / ".writing").exists()
    late = StoreWriter(path, CONTENTS.plan)
    assert late.missing == []
    late.seal()
    MaskStore.open(path).check()


def test_two_that_write_the_same_do_no_harm(tmp_path, monkeypatch):
    write_store(tmp_path / "one.zarr", CONTENTS.plan, CONTENTS.results)
    path = tmp_path / "parts.zarr"
    one, other = StoreWriter(path, CONTENTS.plan), StoreWriter(path, CONTENTS.plan)
    steps = one.missing
    write(one, steps)
    # What is written stays as it is: other libraries would give other bytes.
    with monkeypatch.context() as others:
        others.setattr(zarr_arrays, "ZSTD_LEVEL", 1)
        write(other, steps)
    one.seal()
    with monkeypatch.context() as others:
        others.setattr(zarr_arrays, "ZSTD_LEVEL", 1)
        write(other, steps[:1])  # late: the store is sealed already
    other.seal()
    assert visible(path) == visible(tmp_path / "one.zarr")
    assert not (path / ".writing").exists()
    MaskStore.open(path).check()


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"selection_rule": ThresholdTopK(threshold=0.04).facts},
            "selection_rule was {'name': 'threshold_top_k', 'thres",
        ),
        ({"counted_tokens": "all"}, "counted_tokens was 'prompt'"),
        ({"index": dataclasses.replace(CONTENTS.plan.index, categories=("x",) * 150)}, "its prompts or batches were"),
    ],
)
def test_a_writer_with_another_plan_is_refused(tmp_path, sealed, change, what):
    writer = StoreWriter(tmp_path / "masks.zarr", CONTENTS.plan)
    if sealed:
        write(writer, writer.missing)
        writer.seal()
    before = visible(tmp_path)
    with pytest.raises(UserError, match="was begun by another analysis") as error:
        StoreWriter(tmp_path / "masks.zarr", dataclasses.replace(CONTENTS.plan, **change))
    assert what in str(error.value)
    assert visible(tmp_path) == before


def test_counts_of_other_prompts_are_of_another_plan(tmp_path):
    StoreWriter(tmp_path / "counts.zarr", CONTENTS.counts_plan)
    other = dataclasses.replace(CONTENTS.plan.index, prompt_ids=("x",) * 300)
    with pytest.raises(UserError, match="its prompts or batches were others"):
        StoreWriter(tmp_path / "counts.zarr", dataclasses.replace(CONTENTS.counts_plan, index=other))


def test_counts_in_parts_are_the_store_of_one_writer(tmp_path):
    plan, counts = CONTENTS.counts_plan, CONTENTS.counts
    write_store(tmp_path / "one.zarr", plan, counts)
    one, other = (StoreWriter(tmp_path / "parts.zarr", plan) for _ in range(2))
    for writer, batches in zip((one, other, one), reversed(one.missing), strict=True):
        writer.write(batches, plan.cut(counts, batches))
    other.seal()
    one.seal()
    assert visible(tmp_path / "parts.zarr") == visible(tmp_path / "one.zarr")


def test_results_must_be_those_of_a_whole_step(tmp_path):
    writer = StoreWriter(tmp_path / "masks.zarr", CONTENTS.plan)
    for batches, results in ((range(63), range(63)), (range(64), range(63)), (range(1, 65), range(1, 65))):
        with pytest.raises(AssertionError):
            writer.write(batches, CONTENTS.plan.cut(CONTENTS.results, results))


@pytest.mark.parametrize(
    ("num_batches", "rows"), [(1, 1), (40, 40), (64, 64), (8192, 64), (8193, 128), (100_000, 1024)]
)
def test_an_array_has_128_files_at_most(num_batches, rows):
    assert batches_per_file(num_batches) == rows
    assert -(-num_batches // rows) <= 128


@pytest.mark.timeout(120)
def test_a_kill_leaves_a_store_that_goes_on_or_says_that_it_is_incomplete(tmp_path):
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.unit.store.killed_writers", tmp_path]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert len(lines) == 20
    assert sum(status == "-9" for _, status, _ in lines) == 20
    assert {left for _, _, left in lines} == {"is incomplete", "whole"}
