"""An analysis that was killed, or shared out over jobs, gives the store of one that was not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dist_moe.cli.main import main
from dist_moe.measure import parts
from dist_moe.store import plan
from dist_moe.store.counts import Counts
from dist_moe.store.read import MaskStore
from dist_moe.workflows import analyze, count


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Counts in parts of one batch, and so the masks."""
    monkeypatch.setattr(parts, "ROWS_AT_ONCE", 16)
    monkeypatch.setattr(plan, "batches_per_file", lambda num_batches: 1)


@pytest.fixture
def counted(monkeypatch):
    """How many rows were counted, call by call."""
    numbers, original = [], count.count_rows

    def count_rows(model, rows, **settings):
        numbers.append(len(rows))
        return original(model, rows, **settings)

    monkeypatch.setattr(count, "count_rows", count_rows)
    return numbers


@pytest.fixture
def written(monkeypatch):
    """The batches whose masks were selected, call by call."""
    steps, original = [], analyze.selected

    def selected(counts, batches, *arguments, **settings):
        steps.append(batches.start)
        return original(counts, batches, *arguments, **settings)

    monkeypatch.setattr(analyze, "selected", selected)
    return steps


def analyzed(run, *arguments):
    assert main(["analyze", "--config", str(run.config), *arguments]) == 0


def interrupted(monkeypatch, name, after, run):
    """Analyze until `name` is called for the time `after` + 1."""
    module = count if name == "count_rows" else analyze
    calls, original = [], getattr(module, name)

    def broken(*arguments, **settings):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(name)
        return original(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, broken)
        assert main(["analyze", "--config", str(run.config)]) == 130


def test_jobs_that_share_an_analysis_give_the_store_of_one(fresh, counted, written, tmp_path, capsys):
    analyzed(fresh, "--run-dir", str(tmp_path / "whole"))
    assert (counted, written) == ([16, 16], [0, 1])
    shared = ["--run-dir", str(tmp_path / "shared"), "--analysis.part"]
    for part, num_counted, batches, said in (
        ("2/2", [16], [], "1 of 2 parts are left to other jobs; run the command again when these have counted them"),
        ("2/2", [], [], "1 of 2 parts are left to other jobs; run the command again when these have counted them"),
        ("1/2", [16], [0], "Masks of 1 of 2 batches are left to other jobs"),
        ("2/2", [], [1], f"Masks: {tmp_path / 'shared' / 'masks.zarr'}"),
    ):
        assert not (tmp_path / "shared" / "masks.zarr").exists()
        counted.clear()
        written.clear()
        capsys.readouterr()
        analyzed(fresh, *shared, part)
        assert (counted, written) == (num_counted, batches)
        assert capsys.readouterr().out.splitlines()[-1] == said
    assert not (tmp_path / "shared" / "analysis").exists()
    one, two = (MaskStore.open(tmp_path / name / "masks.zarr") for name in ("whole", "shared"))
    two.check()
    assert one.digest == two.digest


def test_an_analysis_that_broke_off_counts_the_rest_only(fresh, counted, monkeypatch, tmp_path):
    analyzed(fresh, "--run-dir", str(tmp_path / "whole"))
    interrupted(monkeypatch, "count_rows", 1, fresh)
    counted.clear()
    analyzed(fresh)
    assert counted == [16]
    assert MaskStore.open(fresh.masks).digest == MaskStore.open(tmp_path / "whole" / "masks.zarr").digest


def test_an_analysis_that_broke_off_while_it_wrote_writes_the_rest_only(fresh, counted, written, monkeypatch, tmp_path):
    analyzed(fresh, "--run-dir", str(tmp_path / "whole"))
    interrupted(monkeypatch, "selected", 1, fresh)
    assert not fresh.masks.exists()
    counted.clear()
    written.clear()
    analyzed(fresh)
    assert (counted, written) == ([], [1])
    assert MaskStore.open(fresh.masks).digest == MaskStore.open(tmp_path / "whole" / "masks.zarr").digest


@pytest.mark.parametrize("change", [("analysis.top_k", "3"), ("analysis.statistics.resamples", "50"), ("seed", "1")])
def test_what_broke_off_is_not_taken_for_other_settings(fresh, monkeypatch, tmp_path, change):
    other = [f"--{change[0]}", change[1]]
    analyzed(fresh, *other, "--run-dir", str(tmp_path / "whole"))
    interrupted(monkeypatch, "selected", 1, fresh)
    analyzed(fresh, *other)
    assert MaskStore.open(fresh.masks).digest == MaskStore.open(tmp_path / "whole" / "masks.zarr").digest


def test_a_store_is_replaced_only_by_a_whole_one(fresh, monkeypatch):
    analyzed(fresh)
    before = MaskStore.open(fresh.masks).digest
    assert main(["analyze", "--config", str(fresh.config), "--analysis.top_k", "3"]) == 2
    interrupted_at = ["--overwrite", "--analysis.top_k", "3"]
    with monkeypatch.context() as patch:
        patch.setattr(analyze, "publish_results", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["analyze", "--config", str(fresh.config), *interrupted_at]) == 130
    assert MaskStore.open(fresh.masks).digest == before
    analyzed(fresh, *interrupted_at)
    assert MaskStore.open(fresh.masks).selection_rule["top_k"] == 3


def test_damaged_counts_are_one_line(fresh, capsys, monkeypatch):
    interrupted(monkeypatch, "count_rows", 1, fresh)
    (path,) = (fresh.run_dir / "analysis").glob("*.counts")
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["analyze", "--config", str(fresh.config)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"dist-moe: error: {path} is damaged: remove it, and run the same command again"
    path.unlink()
    analyzed(fresh)


def test_count_and_then_select_are_analyze(fresh, counted, tmp_path, capsys):
    analyzed(fresh, "--run-dir", str(tmp_path / "whole"))
    assert main(["count", "--config", str(fresh.config)]) == 0
    there = ["count.yaml", "counts.zarr", "logs", "rows.safetensors"]
    assert sorted(path.name for path in fresh.run_dir.iterdir()) == there
    assert main(["select", str(fresh.run_dir)]) == 0
    assert MaskStore.open(fresh.masks).digest == MaskStore.open(tmp_path / "whole" / "masks.zarr").digest
    fresh.masks.rename(tmp_path / "first.zarr")
    counted.clear()
    analyzed(fresh)  # the counts that are there are used
    assert counted == []
    assert MaskStore.open(fresh.masks).digest == MaskStore.open(tmp_path / "whole" / "masks.zarr").digest
    fresh.masks.rename(tmp_path / "second.zarr")
    capsys.readouterr()
    assert main(["analyze", "--config", str(fresh.config), "--analysis.tokens", "all"]) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert f"{fresh.run_dir / 'counts.zarr'} was begun by another analysis (counted_tokens was 'content')" in line
    assert main(["count", "--config", str(fresh.config)]) == 2
    assert f"{fresh.run_dir / 'counts.zarr'} exists" in capsys.readouterr().err


def test_jobs_that_share_counting_give_the_counts_of_one(fresh, counted, tmp_path, capsys):
    assert main(["count", "--config", str(fresh.config), "--run-dir", str(tmp_path / "whole")]) == 0
    assert counted == [16, 16]
    shared = ["count", "--config", str(fresh.config), "--analysis.part"]
    assert main([*shared, "2/2"]) == 0
    assert not (fresh.run_dir / "counts.zarr").exists()
    assert "1 of 2 parts are left to other jobs" in capsys.readouterr().out
    assert main([*shared, "1/2"]) == 0
    assert counted == [16] * 4
    one, two = (Counts.open(run / "counts.zarr") for run in (tmp_path / "whole", fresh.run_dir))
    two.check()
    assert one.digest == two.digest


def test_a_wrong_part_is_one_line(fresh, capsys):
    assert main(["analyze", "--config", str(fresh.config), "--analysis.part", "3/2"]) == 2
    assert "analysis.part is '3/2': expected I/N" in capsys.readouterr().err


def run_killed(run, *seed):
    """Each start's (parts counted, steps written, status)."""
    command = [sys.executable, "-m", "tests.cli.killed_analysis", str(run.config), *seed]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=180)
    assert done.returncode == 0, done.stderr
    return [tuple(map(int, line.split()[1:])) for line in done.stdout.splitlines() if line.startswith("run ")]


@pytest.mark.long
@pytest.mark.timeout(250)
def test_an_analysis_that_is_killed_until_it_ends_well_gives_the_same_store(fresh):
    assert run_killed(fresh) == [(2, 2, 0)]
    expected = MaskStore.open(fresh.masks).digest
    fresh.masks.rename(fresh.root / "undisturbed.zarr")
    (fresh.run_dir / "counts.zarr").rename(fresh.root / "counts.zarr")
    runs = run_killed(fresh, "2")
    assert [status for *_, status in runs] == [-9] * (len(runs) - 1) + [0]
    assert len(runs) > 4
    # what was kept is not done again: a part or step is done once more only where the kill came before it was kept
    assert sum(counted for counted, *_ in runs) <= 6
    assert all(counted == 0 for counted, *_ in runs[4:])
    assert MaskStore.open(fresh.masks).digest == expected
    assert not (fresh.run_dir / "analysis").exists()
