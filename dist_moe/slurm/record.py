"""What was submitted for a run: RUN/slurm/jobs.json."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from dist_moe.artefacts import EXACT, read_sealed, write_sealed
from dist_moe.errors import UserError
from dist_moe.files import writing
from dist_moe.slurm import Stage
from dist_moe.slurm.scheduler import Task

FORMAT, VERSION = "dist_moe slurm jobs", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A job of the run."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    stage: Stage
    job: str
    """Its number."""
    name: str
    num_parts: int
    log: str
    """Path of its log, of an array without the end `_PART.log`."""

    def log_of(self, part: int | None) -> Path:
        """The log of a part, or of the whole job."""
        return Path(self.log if part is None else f"{self.log.removesuffix('.log')}_{part}.log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The jobs of a run, as they were submitted last, in their order."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    directory: str
    """In which they were submitted."""
    jobs: list[Submitted]

    def owns(self, task: Task) -> bool:
        """Whether a job of Slurm's is one of these. Numbers alone may come again, in another cluster or after years."""
        known = {(each.job, each.name) for each in self.jobs}
        return (task.job, task.name) in known and task.directory == self.directory

    def write(self, path: Path) -> None:
        """Replace the record."""
        with writing(path):
            write_sealed(path, FORMAT, VERSION, asdict(self))


def record_path(run_dir: Path) -> Path:
    """Of a run's record."""
    return run_dir / "slurm" / "jobs.json"


def read_record(run_dir: Path) -> Record | None:
    """What was submitted; None: nothing was.

    Raises:
        UserError: the record is damaged.
    """
    path = record_path(run_dir)
    if not path.exists():
        return None
    advice = "see `squeue --me` for jobs that may still run, then remove it"
    return read_sealed(path, FORMAT, VERSION, Record, advice)[0]


@contextmanager
def alone(run_dir: Path) -> Iterator[None]:
    """Context manager: no other process submits jobs of this run meanwhile.

    Raises:
        UserError: another one does.
    """
    lock = os.open(run_dir / "slurm" / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{run_dir}: its jobs are being submitted at this moment by another process") from None
        yield
    finally:
        os.close(lock)
