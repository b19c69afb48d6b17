"""A host or a rank is lost in mid-step: the other ends in time and says who it was, and the run resumes bit for bit."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import Run
from tests.hosts.conftest import Launchers, ended, training
from tests.hosts.network import Host
from tools.soak.compare import differing_bits

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

TIMEOUT_S = 20
GRACE_S = 30
"""What a busy machine may take for ending a process."""


def rank_on(host: Host) -> psutil.Process:
    """The process that trains there, below its launcher."""
    found = [psutil.Process(process) for process in host.processes]
    (rank,) = [each for each in found if "RANK" in each.environ() and "launch/train.py" in each.cmdline()]
    return rank


def wait_for_steps(run_dir: Path, least: int, *processes: subprocess.Popen[str]) -> None:
    metrics, end = run_dir / "metrics.jsonl", time.monotonic() + 150
    while not metrics.exists() or metrics.read_text().count("\n") < least:
        assert time.monotonic() < end, "no step"
        assert all(process.poll() is None for process in processes), [each.communicate() for each in processes]
        time.sleep(0.05)


def left_of(*ranks: psutil.Process) -> list[psutil.Process]:
    """Those that have not ended in time; their launcher may not have taken notice of it yet."""
    end = time.monotonic() + TIMEOUT_S + GRACE_S
    left = list(ranks)
    while left and time.monotonic() < end:
        time.sleep(0.1)
        left = [rank for rank in left if rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE]
    return left


def require_lost(text: str, rank: int, lost: int, process: int) -> None:
    """One line of a rank says whom it has lost, and where that one was."""
    whom = rf"rank {rank}: rank {lost} is lost \(process {process} on host{lost}\)"
    where = (
        r"no sign of life for \d+ s; last seen (with \d+ of 60 steps done, |)in [\w<>]+ \(dist_moe/[\w/]+\.py:\d+\);"
    )
    assert len(re.findall(f"dist-moe: error: {whom}, {where}", text)) == 1, text


def require_stacks(run_dir: Path, rank: int, lost: int) -> None:
    """Its log has its stacks, and how it has ended; its last exchanges are beside it."""
    log = (run_dir / "logs" / f"rank-{rank}.log").read_text()
    stacks, told, ending = log.partition("stacks:\n")[2].partition("ended: ")
    assert 'dist_moe/training/trainer.py", line' in stacks, log
    assert told, log
    assert f"rank {rank}: rank {lost} is lost" in ending, log
    exchanges = json.loads((run_dir / "logs" / f"exchanges-rank-{rank}.json").read_text())["entries"]
    assert "gloo:all_reduce" in {each["profiling_name"] for each in exchanges}
    assert not exchanges[-1]["retired"], exchanges[-1]


def test_a_host_that_is_cut_off_is_named_by_the_other_and_training_resumes(
    launchers: Launchers, run: Run, undisturbed: Path
) -> None:
    run_dir, host = run.root / "cut", launchers.hosts[1]
    words = training(run, run_dir, "--parallel.timeout", str(TIMEOUT_S))
    both = launchers.torchrun("train", *words)
    wait_for_steps(run_dir, 7, *both)
    ranks = [rank_on(host) for host in launchers.hosts]
    host.cut()
    try:
        left = left_of(*ranks)
        both[1].kill()  # torchrun there waits for its store, on the other host
        said = [process.communicate(timeout=60)[1] for process in both]
    finally:
        host.mend()
    assert left == [], said
    require_lost(said[0], 0, 1, ranks[1].pid)
    require_stacks(run_dir, 0, 1)
    require_lost(said[1], 1, 0, ranks[0].pid)
    require_stacks(run_dir, 1, 0)
    ended(*launchers.torchrun("train", *words))
    assert differing_bits(run_dir, undisturbed) == 0


def test_a_rank_that_is_stopped_is_named_by_the_other_and_training_resumes(
    launchers: Launchers, run: Run, undisturbed: Path
) -> None:
    run_dir = run.root / "stopped"
    words = training(run, run_dir, "--parallel.timeout", str(TIMEOUT_S))
    process = launchers.deepspeed("train", *words)
    wait_for_steps(run_dir, 7, process)
    first, second = (rank_on(host) for host in launchers.hosts)
    second.suspend()
    try:
        left = left_of(first)
    finally:
        second.resume()
    said = process.communicate(timeout=60)[1]
    assert left == [], said
    assert process.returncode == 1, said
    require_lost(said, 0, 1, second.pid)
    require_stacks(run_dir, 0, 1)
    assert "host1: dist-moe: error: rank 1: " in said
    ended(launchers.deepspeed("train", *words))
    assert differing_bits(run_dir, undisturbed) == 0
