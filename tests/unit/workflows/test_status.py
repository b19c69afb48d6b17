"""What `dist-moe status` makes of run directories that are empty, old, half broken or left by a killed job."""

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from dist_moe.errors import UserError
from dist_moe.report.status import duration, status_lines
from dist_moe.trackers.rank_state import RankState
from dist_moe.workflows import run_holder
from dist_moe.workflows.status import SILENT_S, status

RANK = RankState(
    command="train", rank=0, num_ranks=2, process=99999999, host=os.uname().nodename, begun=1000.0, told=1100.0,
    unit="steps", done=40, total=100, num_tokens=300, device="cpu", peak_bytes=10**9,
)  # fmt: skip
LINE = {
    "step": 40, "epoch": 1, "batch": 3, "category": "privacy", "loss": 0.5, "grad_norm": 1.0, "lr": 1e-5,
    "num_active": 7, "mask_revision": 2, "terms": {"cross_entropy": {"mean": 0.5, "tokens": 9}},
    "tokens_per_second": 100.0, "seconds": 2.0,
}  # fmt: skip


def write(run_dir, *ranks, lines=()):
    (run_dir / "logs").mkdir(exist_ok=True)
    for rank in ranks:
        rank.write(run_dir / "logs" / f"rank-{rank.rank}.json")
    (run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))


@pytest.fixture
def held(tmp_path):
    """A function that takes the run's lock in the name of a process; it is released at the end."""
    taken = []

    def take(process):
        lock = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
        os.pwrite(lock, f"process {process} on {RANK.host}".encode(), 0)
        fcntl.flock(lock, fcntl.LOCK_EX)
        taken.append(lock)

    yield take
    for lock in taken:
        os.close(lock)


def test_nothing_has_run(tmp_path):
    assert status(tmp_path).state == "not started"
    assert list(status_lines(status(tmp_path))) == [f"{tmp_path}: not started: no command has written results here yet"]


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"no run directory .*/run: expected one that a command of dist-moe"):
        status(tmp_path / "run")


def test_a_job_that_holds_the_lock_runs_and_one_that_does_not_was_killed(tmp_path, held):
    write(tmp_path, RANK, replace(RANK, rank=1, num_tokens=100), lines=[LINE])
    assert status(tmp_path).state == "killed"
    assert status(tmp_path).seconds_left is None
    held(RANK.process)
    found = status(tmp_path)
    assert (found.state, found.job) == ("running", f"process {RANK.process} on {RANK.host}")
    assert found.seconds_left == 60 * 2.0
    assert found.token_balance == 300 / 200
    assert found.silent_seconds > 1e6


def test_another_job_than_the_one_that_has_told_is_starting(tmp_path, held):
    write(tmp_path, RANK, lines=[LINE])
    held(1)
    assert status(tmp_path).state == "starting"


def test_without_locks_a_process_that_tells_or_cannot_be_asked_may_run(tmp_path, monkeypatch, held):
    held(RANK.process)

    def unsupported(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_holder.fcntl, "flock", unsupported)
    monkeypatch.setattr("time.time", lambda: RANK.told + SILENT_S - 1)
    write(tmp_path, RANK, lines=[LINE])
    assert status(tmp_path).state == "killed"  # this host has no such process
    write(tmp_path, replace(RANK, process=os.getpid()), lines=[LINE])
    assert status(tmp_path).state == "running"
    write(tmp_path, replace(RANK, host="elsewhere"), lines=[LINE])
    assert status(tmp_path).state == "running"
    monkeypatch.setattr("time.time", lambda: RANK.told + SILENT_S + 1)
    assert status(tmp_path).state == "unknown"
    write(tmp_path, replace(RANK, host="elsewhere", has_ended=True, error="no room"), lines=[LINE])
    assert (status(tmp_path).state, status(tmp_path).error) == ("failed", "no room")


def test_a_job_of_which_one_rank_was_interrupted_has_not_failed(tmp_path):
    lost, stopped = (replace(RANK, has_ended=True, error=error) for error in ("another rank has ended", "interrupted"))
    write(tmp_path, lost, replace(stopped, rank=1))
    assert (status(tmp_path).state, status(tmp_path).error) == ("interrupted", None)


def test_files_of_an_earlier_job_with_more_ranks_are_not_its_ranks(tmp_path):
    write(tmp_path, RANK, replace(RANK, rank=1), replace(RANK, rank=2, num_ranks=3))
    assert [rank.rank for rank in status(tmp_path).ranks] == [0, 1]


def test_a_line_that_a_killed_job_has_begun_is_none(tmp_path):
    write(tmp_path, RANK, lines=[LINE | {"step": 39}, LINE])
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 41, "loss": ')
    found = status(tmp_path)
    assert (found.step.step, found.notes) == (40, [])


def test_speed_is_that_of_the_last_steps(tmp_path):
    lines = [LINE | {"step": n, "seconds": float(n), "tokens_per_second": float(n)} for n in range(1, 41)]
    write(tmp_path, RANK, lines=lines)
    step = status(tmp_path).step
    assert (step.tokens_per_second, step.seconds_per_step) == (30.5, 30.5)


def test_what_is_broken_is_said_and_the_rest_is_shown(tmp_path):
    write(tmp_path, RANK, lines=[LINE])
    (tmp_path / "logs" / "rank-1.json").write_text('{"rank": ')
    broken = tmp_path / "checkpoints" / "step-00000040"
    broken.mkdir(parents=True)
    (broken / "index.json").write_text("{}")
    (tmp_path / "adjustments.jsonl").write_text('{"step": 3}\n')
    (tmp_path / ".publishing-select").mkdir()
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write("no json\n")
    found = status(tmp_path)
    assert (found.state, found.step.step, found.checkpoint, found.adjustment) == ("killed", 40, None, None)
    for part in ("rank-1.json: not valid JSON", "step-00000040", "adjustments.jsonl:1: ", "metrics.jsonl: not valid",
                 "the same `dist-moe analyze` again finishes it"):  # fmt: skip
        assert sum(part in note for note in found.notes) == 1, found.notes
    assert len(found.notes) == 5
    assert asdict(found)["step"]["terms"] == {"cross_entropy": 0.5}


@pytest.mark.parametrize("text", ["[]", '"x"', "{}", json.dumps(LINE | {"step": "x"}), json.dumps(LINE | {"terms": 3})])
def test_a_line_of_something_else_is_a_note(tmp_path, text):
    write(tmp_path, lines=[LINE])
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write(f"{text}\n")
    found = status(tmp_path)
    assert (found.step.step, found.state) == (40, "killed")
    assert [note.endswith(": not a line that training writes") for note in found.notes] == [True]


def test_it_loads_neither_torch_nor_transformers_and_waits_for_nothing(tmp_path):
    write(tmp_path, RANK, lines=[LINE])
    code = (
        "import sys; from dist_moe.cli.main import main\n"
        f"assert main(['status', {str(tmp_path)!r}]) == 0\n"
        "print({m.split('.')[0] for m in sys.modules} & {'torch', 'transformers', 'zarr', 'pandas', 'scipy', 'rich'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "set()"


def test_durations_are_in_a_unit_that_they_have_two_of():
    assert [duration(each) for each in (0.4, 119, 120, 7199, 7200, 2 * 86400)] == [
        "0 s", "119 s", "2 min", "120 min", "2 h", "2 days",
    ]  # fmt: skip
