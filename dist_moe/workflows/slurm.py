"""`dist-moe slurm`: submit a run as a chain of jobs, say what they do, cancel them. Without torch."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.files import write_text_atomic, writing
from dist_moe.slurm.job import NAME, Chain, sbatch
from dist_moe.slurm.queue import StageStatus, stages_of
from dist_moe.slurm.record import Record, Submitted, alone, read_record, record_path
from dist_moe.slurm.scheduler import Task, accounted, cancel, queued, require_scheduler, submitted
from dist_moe.training.run_status import RunStatus
from dist_moe.workflows.slurm_chain import Request, chain
from dist_moe.workflows.status import status


def submit(request: Request) -> tuple[Chain, Record]:
    """Submit the jobs of a run, and keep their numbers in its directory.

    Raises:
        UserError: the run has jobs that have not ended; or Slurm refuses one. Then none is left.
    """
    require_scheduler()
    found = chain(request)
    directory = found.place.directory
    with _directory(directory), alone(found.place.run_dir):
        _require_none_left(found.place.run_dir)
        with writing(directory):
            for job, text in found.batch_files():
                write_text_atomic(found.place.file(job.stage), text)
        return found, _submitted(found)


@contextmanager
def _directory(directory: Path) -> Iterator[None]:
    """Context manager: make the directory; if the block raises, remove what was made."""
    made = [each for each in (directory, *directory.parents) if not each.exists()]
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:  # an interrupt too; nothing is swallowed
        if directory in made:
            shutil.rmtree(directory, ignore_errors=True)
        for each in made[1:]:
            with suppress(OSError):
                each.rmdir()
        raise


def _submitted(found: Chain) -> Record:
    """Submit the jobs one after another; if Slurm refuses one, cancel those before it."""
    place, record = found.place, Record(directory=str(found.place.cwd), jobs=[])
    try:
        for job in found.jobs:
            number = submitted(sbatch(job, place, [each.job for each in record.jobs[-1:]]), place.cwd)
            log, name = str(place.log(job.stage, number)), NAME.format(job.stage)
            record.jobs.append(Submitted(stage=job.stage, job=number, name=name, num_parts=job.num_parts, log=log))
            record.write(record_path(place.run_dir))
    except BaseException:  # an interrupt too; nothing is swallowed
        if record.jobs:
            with suppress(UserError):
                cancel([each.job for each in reversed(record.jobs)])
        raise
    return record


def slurm_status(run: Path) -> tuple[RunStatus, list[StageStatus]]:
    """What the files of a run say, and what the scheduler says of its jobs.

    Raises:
        UserError: there is no such run, or none that was submitted.
    """
    found, record = status(run), _record(run)
    return found, stages_of(record, _tasks(record))


def cancel_run(run: Path) -> list[Task]:
    """Cancel the jobs of a run that have not ended, and no others; returns them.

    Raises:
        UserError: as for `slurm_status`.
    """
    record = _record(run)
    found = [task for task in queued() if record.owns(task) and not task.is_over]
    if found:
        cancel([task.id for task in reversed(found)])
    return found


def _require_none_left(run_dir: Path) -> None:
    record = read_record(run_dir)
    if record is None:
        return
    left = [f"{task.id} ({task.name}, {task.state})" for task in queued() if record.owns(task) and not task.is_over]
    if left:
        raise UserError(
            f"{run_dir} has jobs that have not ended: {', '.join(left[:5])}{', ...' if len(left) > 5 else ''}: "
            f"wait for them, or `dist-moe slurm cancel {run_dir}`"
        )


def _record(run: Path) -> Record:
    record = read_record(run)
    if record is None:
        raise UserError(f"{run}: no jobs were submitted for it by `dist-moe slurm submit`")
    return record


def _tasks(record: Record) -> list[Task]:
    """What Slurm says of the jobs; of those that are no longer in the queue, its records."""
    found = [task for task in queued() if record.owns(task)]
    missing = [each.job for each in record.jobs if each.job not in {task.job for task in found}]
    return found + ([task for task in accounted(missing) if record.owns(task)] if missing else [])
