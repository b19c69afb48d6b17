"""Where the record of each step goes: a tracker of its own, none, one that fails, one that there is not."""

import csv
import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from dist_moe.cli.main import main
from dist_moe.errors import UserError
from dist_moe.trackers.csv import COLUMNS, Csv
from dist_moe.trackers.tracker import TRACKERS, Place


@dataclass(frozen=True)
class Notes:
    """What a newcomer would write, but for the file."""

    name: ClassVar[str] = "notes"
    seen: ClassVar[list] = []
    fails_at: ClassVar[int] = 0

    def record(self, line, place):
        if line["step"] == self.fails_at:
            raise UserError("the notebook is full: buy another")
        self.seen.append((line, place))


@pytest.fixture
def notes(monkeypatch):
    monkeypatch.setattr(Notes, "seen", [])
    monkeypatch.setitem(TRACKERS._loaded(), "notes", Notes)
    return Notes


def train(trained, run_dir, *more):
    masks = ("--train.masks", str(trained.masks), "--run-dir", str(run_dir))
    return main(["train", "--config", str(trained.config), *masks, *more])


def lines(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_each_tracker_gets_every_step(trained, tmp_path, notes, capsys):
    run_dir = tmp_path / "run"
    assert train(trained, run_dir, "--train.trackers", "notes", "console") == 0
    assert [line for line, _ in notes.seen] == lines(run_dir)
    assert {(place.run_dir, place.rank, place.num_steps) for _, place in notes.seen} == {(run_dir, 0, 4)}
    out = capsys.readouterr().out
    before, first, after = out.partition("step 1/4")
    for line in lines(run_dir):
        batch, mask = f"({line['category']})", f"mask {line['mask_hash'][:12]}"
        assert f"  Batch {line['batch']} {batch}: {mask}, {line['num_active']} experts\n" in before
        assert f"step {line['step']}/4  batch {line['batch']} {batch}  {mask}  experts " in first + after


def test_csv_is_a_table_of_the_steps(trained, tmp_path):
    run_dir = tmp_path / "run"
    assert train(trained, run_dir, "--train.trackers", "csv", "--train.objective.kl_to_base.weight", "0.5") == 0
    with (run_dir / "steps.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == len(lines(run_dir)) == 4
    for row, line in zip(table, lines(run_dir), strict=True):
        expected = {name: line[name] for name in ("step", "epoch", "batch", "loss", "grad_norm", "num_stepped", "lr")}
        expected |= {name: term["mean"] for name, term in line["terms"].items()}
        assert {name: float(row[name]) for name in expected} == expected
        assert row["category"] == line["category"]
    assert {"cross_entropy", "kl_to_base"} <= {*table[0]}


def test_a_run_that_starts_anew_starts_the_table_anew(tmp_path):
    place = Place(run_dir=tmp_path, rank=0, num_steps=2)
    line = dict.fromkeys(COLUMNS, 0) | {"terms": {}}
    for step in (1, 2, 1):
        Csv().record(line | {"step": step}, place)
        Csv().record(line | {"step": step}, replace(place, rank=1))
    with (tmp_path / "steps.csv").open(newline="") as stream:
        assert [row["step"] for row in csv.DictReader(stream)] == ["1"]


def test_without_the_console_no_step_is_printed(trained, tmp_path, notes, capsys):
    assert train(trained, tmp_path / "run", "--train.trackers", "notes") == 0
    assert "step 1/4" not in capsys.readouterr().out
    assert len(notes.seen) == len(lines(tmp_path / "run")) == 4


def test_a_tracker_that_fails_ends_the_run_which_goes_on_from_its_checkpoint(
    trained, tmp_path, notes, capsys, monkeypatch
):
    monkeypatch.setattr(Notes, "fails_at", 3)
    arguments = (trained, tmp_path / "run", "--train.trackers", "notes", "--checkpoint.every", "2")
    assert train(*arguments) == 2
    assert "the notebook is full: buy another" in capsys.readouterr().err
    monkeypatch.setattr(Notes, "fails_at", 0)
    assert train(*arguments) == 0
    assert "Resuming after step 2 of 4" in capsys.readouterr().out
    assert [line["step"] for line, _ in notes.seen] == [1, 2, 3, 4]


def test_a_tracker_that_there_is_not_is_one_line(trained, tmp_path, capsys):
    assert train(trained, tmp_path / "run", "--train.trackers", "consol") == 2
    names = "aim, console, csv, metrics, mlflow, tensorboard, trackio, wandb"
    said = f"train.trackers: no tracker 'consol': expected one of {names}; did you mean console?"
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
