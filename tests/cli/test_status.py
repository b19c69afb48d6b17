"""`dist-moe status` and `watch` of real runs: while they train, and however they end; and each rank's log."""

import json
import re
import shutil
from dataclasses import dataclass
from typing import ClassVar

import pytest

from dist_moe.cli.main import main
from dist_moe.errors import UserError
from dist_moe.measure.parts import CountedParts
from dist_moe.trackers.tracker import TRACKERS
from dist_moe.workflows import rank_log
from dist_moe.workflows.status import status


@dataclass(frozen=True)
class Look:
    """A tracker that looks at the run's status in the middle of it, and may ask it to stop, or fail."""

    name: ClassVar[str] = "look"
    seen: ClassVar[list] = []
    ends: ClassVar[dict] = {}

    def record(self, line, place):
        self.seen.append(status(place.run_dir.parent if place.run_dir.name == "training" else place.run_dir))
        if line["step"] in self.ends:
            self.ends[line["step"]](place.run_dir)


@pytest.fixture
def look(monkeypatch):
    monkeypatch.setattr(Look, "seen", [])
    monkeypatch.setattr(Look, "ends", {})
    monkeypatch.setattr(rank_log, "EVERY_S", 0.0)
    monkeypatch.setitem(TRACKERS._loaded(), "look", Look)
    return Look


def train(trained, run_dir, *more):
    masks = ("--train.masks", str(trained.masks), "--run-dir", str(run_dir), "--train.trackers", "console", "look")
    return main(["train", "--config", str(trained.config), *masks, *more])


def printed(capsys, *words):
    capsys.readouterr()
    assert main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_a_run_that_trains_says_where_it_is(trained, tmp_path, look, capsys):
    run_dir = tmp_path / "run"
    assert train(trained, run_dir, "--checkpoint.every", "2", "--train.objective.kl_to_base.weight", "0.5") == 0
    assert [(seen.state, seen.done, seen.total) for seen in look.seen] == [("running", n, 4) for n in (1, 2, 3, 4)]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for number, (seen, line) in enumerate(zip(look.seen, lines, strict=True), 1):
        assert seen.job.startswith(f"process {seen.ranks[0].process} on ")
        assert seen.step.loss == line["loss"]
        assert seen.step.terms == {name: term["mean"] for name, term in line["terms"].items()}
        assert seen.ranks[0].num_tokens == sum(each["num_tokens"] for each in lines[:number])
        mean = sum(each["seconds"] for each in lines[:number]) / number
        assert seen.seconds_left == pytest.approx((4 - number) * mean)
        assert 1e7 < seen.ranks[0].peak_bytes < 1e11
    assert [seen.checkpoint.step for seen in look.seen] == [0, 0, 2, 2]  # that of the step itself comes after it
    found = status(run_dir)
    assert (found.state, found.job, found.checkpoint.step, found.is_over) == ("finished", None, 4, True)
    text = printed(capsys, "status", run_dir)
    assert text.startswith(f"{run_dir}: training finished: step 4 of 4 (100 %)\n  last step   4, epoch 1, batch ")
    assert f"(cross_entropy {lines[-1]['terms']['cross_entropy']['mean']:.4f}, kl_to_base " in text
    assert json.loads(printed(capsys, "status", run_dir, "--json"))["checkpoint"]["step"] == 4
    watched = printed(capsys, "watch", run_dir)
    assert re.sub(r"\d+ s old", "", watched) == re.sub(r"\d+ s old", "", text)


def fail(run_dir):
    raise UserError("the notebook is full: buy another")


def test_how_a_run_has_ended(trained, tmp_path, look, capsys):
    run_dir, words = tmp_path / "run", ("--checkpoint.every", "2")
    look.ends[3] = fail
    assert train(trained, run_dir, *words) == 2
    found = status(run_dir)
    assert (found.state, found.done, found.checkpoint.step) == ("failed", 3, 2)
    assert found.error == "the notebook is full: buy another"
    assert "last error  the notebook is full: buy another" in printed(capsys, "status", run_dir)
    look.ends[3] = lambda run_dir: (run_dir / "STOP").touch()
    assert train(trained, run_dir, *words) == 0
    assert look.seen[-1].requests == []
    found = status(run_dir)
    assert (found.state, found.error, found.checkpoint.step) == ("stopped", None, 3)
    assert "training stopped: step 3 of 4 (75 %), as requested" in printed(capsys, "status", run_dir)
    log = (run_dir / "logs" / "rank-0.log").read_text()
    assert [line.partition(" ")[2].partition(" ")[2] for line in log.splitlines() if " ended" in line] == [
        "ended: the notebook is full: buy another",
        "ended",
    ]
    assert log.count("train: rank 0 of 1, process ") == 2
    assert "Resuming after step 2 of 4" in log


def test_a_bug_leaves_its_traceback_in_the_log(trained, tmp_path, look):
    look.ends[1] = lambda run_dir: 1 / 0
    with pytest.raises(ZeroDivisionError):
        train(trained, tmp_path / "run")
    assert status(tmp_path / "run").error == "ZeroDivisionError: division by zero"
    log = (tmp_path / "run" / "logs" / "rank-0.log").read_text()
    assert "Traceback (most recent call last):" in log
    assert "ended: ZeroDivisionError: division by zero" in log


def test_a_run_that_replaces_another_is_the_one_that_is_shown(trained, tmp_path, look):
    run_dir = shutil.copytree(trained.run_dir, tmp_path / "run")
    assert train(trained, run_dir, "--overwrite", "true") == 0
    assert [(seen.state, seen.done) for seen in look.seen] == [("running", n) for n in (1, 2, 3, 4)]
    assert [seen.step.step for seen in look.seen] == [1, 2, 3, 4]
    assert all("experts" in seen.results for seen in look.seen)
    assert status(run_dir).state == "finished"


def test_counting_has_a_log_and_a_state_too(trained, fresh, monkeypatch):
    """It is counted in parts of a batch."""
    log = (trained.run_dir / "logs" / "rank-0.log").read_text()
    assert re.findall(r"^\S+ \S+ (\w+): rank 0 of 1, process \d+ on ", log, re.MULTILINE) == ["count", "train"]
    seen, kept = [], CountedParts.keep
    monkeypatch.setattr(rank_log, "EVERY_S", 0.0)
    monkeypatch.setattr("dist_moe.measure.parts.ROWS_AT_ONCE", 16)
    monkeypatch.setattr(CountedParts, "keep", lambda *given: (kept(*given), seen.append(status(fresh.run_dir))))
    assert main(["count", "--config", str(fresh.config)]) == 0
    assert [each.state for each in seen] == ["starting", "running"]  # what is refused before the first leaves no log
    assert (seen[1].command, seen[1].done, seen[1].total, seen[1].unit) == ("count", 1, 2, "parts")
    assert seen[1].seconds_left > 0
    found = status(fresh.run_dir)
    assert (found.state, found.done, found.results) == ("finished", 2, ["counts.zarr"])


def test_a_log_that_cannot_be_written_costs_no_step(trained, tmp_path, look, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "logs").write_text("a file")
    assert train(trained, tmp_path / "run") == 0
    assert capsys.readouterr().err.count("going on without this rank's log") == 1
    assert (tmp_path / "run" / "logs").read_text() == "a file"
    assert (status(tmp_path / "run").state, look.seen[1].state) == ("finished", "starting")
