"""The stages of a run in Slurm's queue: how far each is, and why one has not succeeded."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_moe.slurm import Stage
from dist_moe.slurm.record import Record, Submitted
from dist_moe.slurm.scheduler import Task

TAIL_BYTES = 2**16
LONGEST = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A job, or a part of an array, that did not succeed."""

    part: int | None
    log: str
    line: str
    """The last error in its log, or else its last line; may be empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStatus:
    """A stage of a run, and its tasks in the queue; none where Slurm does not know the job any more."""

    stage: Stage
    job: str
    num_parts: int
    tasks: list[Task]
    waits_for: Stage | None
    """The stage before it, as long as it waits for that; or which has not succeeded, so that it was cancelled."""
    failures: list[Failure]

    @property
    def states(self) -> Counter[str]:
        """How many of its tasks are in which state."""
        return Counter(task.state for task in self.tasks)

    @property
    def has_succeeded(self) -> bool:
        return self.states["COMPLETED"] == self.num_parts


def stages_of(record: Record, tasks: Sequence[Task]) -> list[StageStatus]:
    """The stages in their order."""
    found = list[StageStatus]()
    for each in record.jobs:
        own = [task for task in tasks if task.job == each.job]
        before = found[-1] if found else None
        waits = any(task.reason.startswith("Dependency") for task in own)
        found.append(
            StageStatus(
                stage=each.stage,
                job=each.job,
                num_parts=each.num_parts,
                tasks=own,
                waits_for=before.stage if before is not None and waits and not before.has_succeeded else None,
                failures=[_failure(each, task) for task in own if task.is_over and _has_failed(task)],
            )
        )
    return found


def _has_failed(task: Task) -> bool:
    return task.state != "COMPLETED" and not task.reason.startswith("Dependency")


def _failure(job: Submitted, task: Task) -> Failure:
    log = job.log_of(task.part)
    return Failure(part=task.part, log=str(log), line=_said(log))


def _said(log: Path) -> str:
    """Of the end of a log: the last line with an error of ours, else the last line."""
    if not log.is_file():
        return ""
    with log.open("rb") as stream:
        stream.seek(max(stream.seek(0, os.SEEK_END) - TAIL_BYTES, 0))
        lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if "dist-moe: error: " in line]
    line = (ours or lines or [""])[-1]
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
