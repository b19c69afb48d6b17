"""Results take the place of earlier ones whole and together: the old stay until all of the new are on disk.

    .publishing-COMMAND   the new results, whole: from here on they count, and whoever comes next goes on with the rest
    .replaced-COMMAND     the old ones, on their way out
    .published-COMMAND    the new ones, on their way to their names

Called by one process that holds the run directory's lock; it may be killed at any moment.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from dist_moe.config.load import load_config
from dist_moe.config.schema import Config
from dist_moe.errors import UserError
from dist_moe.files import sync, sync_tree, writing
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.workflows.run_lock import RunLock

RESULTS = {
    "count": ("counts.zarr", "count.yaml"),
    "analyze": ("counts.zarr", "count.yaml", "masks.zarr", "analyze.yaml"),
    "select": ("masks.zarr", "analyze.yaml"),
    "train": ("experts", "evaluation.json", "metrics.jsonl", "checkpoints", "train.yaml"),
}
"""What a command's results are, and what goes with the old ones: an evaluation is of the experts that it has seen.

`select` is the second half of `analyze`, from counts that are there already.
"""

HALVES = {"count": {"count"}, "analyze": {"analyze", "select"}, "train": {"train"}}
"""As which of these a command may have published."""


def publish_results(command: str, staged: Path, run_dir: Path) -> None:
    """Put what is in `staged`, a directory of the same file system, in the place of a command's earlier results."""
    sync_tree(staged)
    if (run_dir / f".replaced-{command}").exists():
        shutil.rmtree(run_dir / f".replaced-{command}")
    staged.rename(run_dir / f".publishing-{command}")
    sync(run_dir)
    _finish(command, run_dir)


def finish_publishing(run_dir: Path, lock: RunLock) -> list[str]:
    """Do the rest of what a killed job has left undone; returns the commands whose results it was.

    Raises:
        UserError: another job, which shares the lock, is at it.
    """
    found = [command for command in RESULTS if _is_under_way(command, run_dir)]
    if found and not lock.alone():
        raise UserError(
            f"{run_dir} is in use by another job, which is moving results into place: wait until it has ended"
        )
    for command in found:
        _finish(command, run_dir)
    for command in RESULTS:
        shutil.rmtree(run_dir / f".replaced-{command}", ignore_errors=True)
    return found


def is_finished(command: str, config: Config, lock: RunLock | None, comm: Comm, places: Sequence[Path]) -> bool:
    """At a start, on all ranks together: whether only publishing was left of this same run, and is done now.

    `lock` is rank 0's.

    Raises:
        UserError: on all ranks, if the run directory, or what is there of the `places` in it, cannot be written.
    """
    finished = False
    with together(comm), writing(config.run_dir):
        if lock is not None:
            found = finish_publishing(config.run_dir, lock)
            finished = (
                not HALVES[command].isdisjoint(found) and load_config(config.run_dir / f"{command}.yaml") == config
            )
            for place in places:
                _require_writable(place)
    return comm.gather(finished)[0]


def require_published(run_dir: Path, command: str) -> None:
    """For those who only read a run: its results must not be half the old and half the new ones."""
    if _is_under_way(command, run_dir):
        raise UserError(
            f"{run_dir}: its results are being replaced: wait for the job that does it; if that was killed, give the "
            f"same `dist-moe {command}` again, which finishes it"
        )


def _require_writable(directory: Path) -> None:
    """What is made later if it is not there yet cannot be tried."""
    if directory.exists():
        probe = directory / f".probe-{secrets.token_hex(4)}"
        probe.write_bytes(b"x")
        probe.unlink()


def _is_under_way(command: str, run_dir: Path) -> bool:
    return any((run_dir / f".{state}-{command}").exists() for state in ("publishing", "published"))


def _finish(command: str, run_dir: Path) -> None:
    old, whole, new = (run_dir / f".{state}-{command}" for state in ("replaced", "publishing", "published"))
    if whole.exists():
        old.mkdir(exist_ok=True)
        for name in RESULTS[command]:
            if (run_dir / name).exists():
                (run_dir / name).rename(old / name)
        whole.rename(new)
        sync(run_dir)
    for path in sorted(new.iterdir()):
        path.rename(run_dir / path.name)
    new.rmdir()
    sync(run_dir)
    shutil.rmtree(old, ignore_errors=True)
