"""Nothing old goes before the new is whole, at whatever moment a command is killed or its disk is full."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp

import pytest

from dist_moe.cli.main import main
from dist_moe.store.read import MaskStore
from dist_moe.workflows import analyze
from tests.forks import start_fork
from tools.soak.__main__ import SINGLE_THREADED
from tools.soak.compare import differing_bits

REPOSITORY = Path(__file__).parents[2]


def run_python(*arguments):
    environment = {"PATH": "", **SINGLE_THREADED}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=500
    )


@pytest.fixture(scope="module")
def old(trained, tmp_path_factory):
    """A finished run with an evaluation."""
    out = tmp_path_factory.mktemp("old") / "run"
    shutil.copytree(trained.run_dir, out)
    (out / "evaluation.json").write_text("{}")
    (out / "answers.jsonl").write_text("")
    return out


@pytest.fixture(scope="module")
def killed(trained, old, tmp_path_factory):
    """(work, name -> (first status, old as it was, marked, second status)), and the run that nothing disturbed."""
    work = tmp_path_factory.mktemp("killed")
    shutil.copytree(old, work / "undisturbed")
    arguments = ["--config", trained.config, "--overwrite", "--train.epochs", "1", "--checkpoint.every", "2"]
    arguments = [*map(str, arguments)]
    # in a process like those that are killed: another number of threads rounds otherwise
    done = run_python("-m", "dist_moe.cli.main", "train", *arguments, "--run-dir", work / "undisturbed")
    assert done.returncode == 0, done.stdout + done.stderr
    done = run_python("-m", "tests.cli.killed_training", old, work, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    return work, {name: rest for name, *rest in lines}


def contents(directory):
    """All but the logs, to which each job adds."""
    files = {str(p.relative_to(directory)): p for p in directory.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if not name.startswith("logs/")}


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_run_that_replaces_another_leaves_it_until_it_is_whole(killed):
    _, found = killed
    kills = [found[name] for name in found if name.isdecimal()]
    assert [first for first, *_ in kills] == [-9] * (len(kills) - 1) + [0]
    assert len(kills) > 12
    assert all(same or marked for _, same, marked, _ in kills[:-1]), kills  # what is not as it was is said to be so
    assert sum(same and not marked for _, same, marked, _ in kills) >= 5
    assert sum(marked for *_, marked, _ in kills) >= 5


@pytest.mark.long
@pytest.mark.timeout(600)
def test_on_a_full_disk_the_earlier_results_stay(killed):
    _, found = killed
    limited = [rest for name, rest in found.items() if name.startswith("limit-")]
    assert [(first, same, marked) for first, same, marked, _ in limited] == [(2, True, False)] * len(limited)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_the_same_command_then_replaces_it_whole(killed):
    work, found = killed
    for name, (*_, second) in found.items():
        assert second == 0, name
        assert differing_bits(work / name, work / "undisturbed") == 0, name
        assert names(work / name) == names(work / "undisturbed")
        assert not (work / name / "evaluation.json").exists()
        assert not (work / name / "answers.jsonl").exists()
    assert len(found) > 16


def test_what_replaces_an_earlier_run_goes_on_too(trained, old, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(old, run)
    (run / "STOP").touch()
    arguments = ["train", "--config", str(trained.config), "--run-dir", str(run), "--overwrite", "--train.epochs", "3"]
    before = contents(old)
    assert main(arguments) == 0
    assert {name: data for name, data in contents(run).items() if not name.startswith("training")} == before
    assert (run / "training" / "checkpoints" / "step-00000001").is_dir()
    capsys.readouterr()
    assert main(["checkpoint", "show", str(run)]) == 0
    assert "after step 1" in capsys.readouterr().out
    assert main([*arguments, "--train.lr", "0.5"]) == 0  # other settings are not mixed up with it
    assert "Starting again from step 0, because overwrite is set: " in capsys.readouterr().out
    assert not (run / "training").exists()


def test_readers_are_told_that_results_are_being_replaced(old, tmp_path, capsys):
    shutil.copytree(old, tmp_path / "run")
    (tmp_path / "run" / ".publishing-train").mkdir()
    run = str(tmp_path / "run")
    for command in (["export", run, "--out", str(tmp_path / "out")], ["evaluate", run]):
        assert main(command) == 2
        assert "its results are being replaced: wait for the job" in capsys.readouterr().err


def test_files_of_killed_attempts_are_not_published(fresh, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(analyze, "publish_results", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["analyze", "--config", str(fresh.config)]) == 130
    shutil.rmtree(fresh.run_dir / "analysis" / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(analyze, "selected", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main(["analyze", "--config", str(fresh.config)]) == 130
    for path in (fresh.run_dir / "analysis").rglob("*"):
        if path.is_dir():
            (path / ".0.partial-0a1b2c").write_bytes(b"half")
    assert len(list(fresh.run_dir.rglob(".*.partial-*"))) > 3
    assert main(["analyze", "--config", str(fresh.config)]) == 0
    assert not list(fresh.run_dir.rglob(".*.partial-*"))
    MaskStore.open(fresh.masks).check()


def at_the_same_time(root, *commands):
    """Status and stderr of each."""
    places = [Path(mkdtemp(dir=root)) for _ in commands]
    jobs = [start_fork(place, main, command) for place, command in zip(places, commands, strict=True)]
    return [(job.status(), job.err.read_text()) for job in jobs]


def test_a_second_analysis_waits_and_is_told_that_there_are_masks(fresh, tmp_path):
    jobs = at_the_same_time(
        tmp_path, ["analyze", "--config", str(fresh.config)], ["analyze", "--config", str(fresh.config)]
    )
    assert sorted(status for status, _ in jobs) == [0, 2], jobs
    loser = dict(jobs)[2]
    assert f"{fresh.masks} exists" in loser
    assert "Traceback" not in loser
    MaskStore.open(fresh.masks).check()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_jobs_that_share_an_analysis_at_the_same_time(fresh, tmp_path):
    base = ["analyze", "--config", str(fresh.config), "--analysis.part"]
    for _ in range(3):
        jobs = at_the_same_time(tmp_path, [*base, "1/2"], [*base, "2/2"])
        assert all("Traceback" not in error for _, error in jobs), jobs
        assert all(status == 0 or "exists" in error for status, error in jobs), jobs
        if fresh.masks.exists():
            break
    MaskStore.open(fresh.masks).check()
    assert not (fresh.run_dir / "analysis").exists()
    assert not (fresh.run_dir / ".lock").exists()
