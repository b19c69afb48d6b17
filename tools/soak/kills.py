"""Start a job again and again, and end each start by a signal at a random moment; then let it finish."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tools.soak.processes import Start, start


@dataclass(frozen=True, slots=True)
class Job:
    """What is started, and who of it is killed how."""

    name: str
    engine: Literal["local", "fsdp", "deepspeed"]
    num_ranks: int
    victim: Literal["rank", "launcher"]
    number: signal.Signals
    settings: tuple[str, ...]
    kills: int

    @property
    def epochs(self) -> int:
        """Of two steps: enough that the run is not at its end before the last signal."""
        return 5 + 3 * self.kills

    def arguments(self, run_dir: Path) -> list[str]:
        settings = ("--train.epochs", str(self.epochs), "--checkpoint.every", "2", *self.settings)
        return ["--run-dir", str(run_dir), *settings]


def undisturbed(job: Job, arguments: list[str], run_dir: Path) -> None:
    """The job without a signal."""
    _finish(start(job.engine, job.num_ranks, [*arguments, *job.arguments(run_dir)], run_dir.with_suffix(".log")))


def kill_again_and_again(job: Job, arguments: list[str], run_dir: Path, seed: int, say: Callable[[str], None]) -> int:
    """The moments are in turn in a step, while the job sets up, and while it writes a checkpoint.

    Says of each start how it ended. Returns how many were ended by the signal, before their last step.
    """
    moments, set_up, num_killed = random.Random(f"{seed} {job.name}"), 0.0, 0
    arguments = [*arguments, *job.arguments(run_dir)]
    for i in range(job.kills):
        log = run_dir.with_name(f"{run_dir.name}-{i:03}.log")
        running = start(job.engine, job.num_ranks, arguments, log)
        running.wait_until(lambda log=log: "Batches:" in log.read_text())  # all ranks have met
        met = time.monotonic()
        where = ("in a step", "while it set up", "in a checkpoint write")[i % 3]
        if where == "in a step":
            running.wait_until(_steps_more(run_dir, moments.randint(3, 5)))  # a checkpoint further
            set_up = (
                set_up or time.monotonic() - met
            )  # and some steps; by the first start, so that it fits this machine
            time.sleep(moments.uniform(0, 0.02))
        elif where == "while it set up":
            time.sleep(moments.uniform(0, set_up))
        else:
            running.wait_until(_steps_more(run_dir, 1))
            missed = _steps_more(run_dir, 3)  # a write may be too short to be seen
            running.wait_until(lambda m=missed: m() or any((run_dir / "checkpoints").glob(".step-*.partial-*")))
            time.sleep(moments.uniform(0, 0.004))
        if running.ended():
            _finish(running)
            say(f"{job.name}: ended before a signal")
            return num_killed
        rank = moments.randrange(job.num_ranks)
        os.kill(running.launcher if job.victim == "launcher" else running.ranks[rank], job.number)
        began = time.monotonic()
        statuses = running.statuses()
        ended = (run_dir / "experts").exists()
        num_killed += not ended
        victim = job.victim if job.victim == "launcher" else f"rank {rank}"
        say(
            f"{job.name}: {job.number.name} to {victim} {where}; ranks ended with {statuses} after "
            f"{time.monotonic() - began:.1f} s{', at the end of the run' if ended else ''}"
        )
        if ended:
            return num_killed
    _finish(start(job.engine, job.num_ranks, arguments, run_dir.with_name(f"{run_dir.name}-last.log")))
    return num_killed


def _finish(last: Start) -> None:
    statuses = last.statuses()
    assert not any(statuses), f"undisturbed, ranks ended with {statuses}:\n{last.log.read_text()}"


def _steps_more(run_dir: Path, number: int) -> Callable[[], bool]:
    """Whether `number` steps were written down since the first call."""
    metrics, size, seen = run_dir / "metrics.jsonl", None, 0

    def check() -> bool:
        nonlocal size, seen
        now = metrics.stat().st_size if metrics.exists() else 0
        seen += size is not None and now > size
        size = now
        return seen >= number

    return check
