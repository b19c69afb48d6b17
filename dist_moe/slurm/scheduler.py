"""Asks Slurm's programs: submit a job, say what jobs do, cancel them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_moe.errors import UserError

ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
    | {"REVOKED", "TIMEOUT"}
)
"""States in which a job is not, and will not be, at work; in any other it is or may be."""
LIMIT_S = 120
FIELDS = "%F|%K|%T|%M|%N|%r|%j|%Z"
ACCOUNTED = "JobID,State,Elapsed,NodeList,Reason,JobName,WorkDir"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A job, or one part of an array, as Slurm sees it."""

    job: str
    """Number of the job; of the whole array."""
    part: int | None
    """Of an array, from 1."""
    state: str
    """Such as PENDING, RUNNING, COMPLETED, FAILED."""
    time: str
    """For how long it has run since its last start."""
    nodes: str
    reason: str
    """Why it waits, or why it has ended; may be empty."""
    name: str
    directory: str
    """In which it was submitted."""

    @property
    def is_over(self) -> bool:
        return self.state in ENDED

    @property
    def id(self) -> str:
        """As scancel takes it."""
        return self.job if self.part is None else f"{self.job}_{self.part}"


def require_scheduler(program: str = "sbatch") -> None:
    """Raise a `UserError` if there is no Slurm here."""
    if shutil.which(program) is None:
        raise UserError(
            f"there is no program {program} here: run this on a login node of the cluster, with Slurm's programs in "
            "PATH"
        )


def submitted(command: Sequence[str], cwd: Path) -> str:
    """Run an sbatch command; returns the job's number.

    Raises:
        UserError: Slurm refuses it, or there is no Slurm here.
    """
    return _ask(command, cwd).strip().partition(";")[0]


def cancel(ids: Sequence[str]) -> None:
    """Cancel jobs, or parts of arrays. Those that have just ended are no error."""
    _ask(["scancel", "--quiet", *ids])


def queued() -> list[Task]:
    """The user's jobs that Slurm has in its queue, by their numbers, and those that ended some minutes ago at most."""
    text = _ask(["squeue", "--noheader", "--me", "--array", "--states=all", f"--format={FIELDS}"])
    found = [_task(*line.split("|", 7)) for line in text.splitlines()]
    return sorted(found, key=lambda task: (int(task.job), task.part or 0))


def accounted(ids: Sequence[str]) -> list[Task]:
    """The jobs with these numbers from Slurm's records; none where the site keeps no records."""
    options = ["--noheader", "--parsable2", "--allocations", f"--format={ACCOUNTED}"]
    done = _run(["sacct", *options, f"--jobs={','.join(ids)}"], None)
    if done.returncode:
        return []
    found = []
    for line in done.stdout.splitlines():
        number, state, elapsed, nodes, reason, name, directory = line.split("|", 6)
        job, _, part = number.partition("_")
        found.append(_task(job, part, state.split()[0], elapsed, nodes, reason, name, directory))
    return found


def _task(job: str, part: str, state: str, time: str, nodes: str, reason: str, name: str, directory: str) -> Task:
    return Task(
        job=job,
        part=int(part) if part.isdecimal() else None,
        state=state,
        time=time,
        nodes="" if nodes == "None assigned" else nodes,
        reason="" if reason == "None" else reason,
        name=name,
        directory=directory,
    )


def _ask(command: Sequence[str], cwd: Path | None = None) -> str:
    done = _run(command, cwd)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise UserError(f"{command[0]} failed: {said[:300]}")
    return done.stdout


def _run(command: Sequence[str], cwd: Path | None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except FileNotFoundError:
        require_scheduler(command[0])
        raise
    except subprocess.TimeoutExpired:
        raise UserError(
            f"{command[0]} has not answered in {LIMIT_S} s: try again, or ask whether Slurm is up"
        ) from None
