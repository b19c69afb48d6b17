"""Replaces the results of a command by new ones, all together; the old ones stay until all new ones are on disk.

    .publishing-COMMAND   the complete new results; from here on they count, and the next job finishes the exchange
    .replaced-COMMAND     the old results, before they are deleted
    .published-COMMAND    the new results, before they get their names

Called by one process that holds the lock of the run directory; it may be killed at any moment.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from dist_moe.config.load import load_config
from dist_moe.config.schema import Config
from dist_moe.errors import UserError
from dist_moe.evaluation.curve import ALPHAS
from dist_moe.evaluation.record import ANSWERS, INDEX
from dist_moe.files import sync, sync_tree, writing
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.workflows.run_lock import RunLock

EVALUATION = (INDEX, ANSWERS)
"""An evaluation's files."""
ADJUSTED = ("adjustments.jsonl", "revisions")
"""What `train.adjust` writes."""
RESULTS = {
    "count": ("counts.zarr", "count.yaml"),
    "analyze": ("counts.zarr", "count.yaml", "masks.zarr", "analyze.yaml"),
    "select": ("masks.zarr", "analyze.yaml"),
    "train": ("experts", *EVALUATION, ALPHAS, "metrics.jsonl", "plan.json", *ADJUSTED, "checkpoints", "train.yaml"),
}
"""The results of each command, and what is removed together with old ones: evaluations belong to their experts.

`select` is the second half of `analyze`, with counts that exist already.
"""

HALVES = {"count": {"count"}, "analyze": {"analyze", "select"}, "train": {"train"}}
"""Names under which a command may have published its results."""


def publish_results(command: str, staged: Path, run_dir: Path) -> None:
    """Replace a command's earlier results by those in `staged`, a directory on the same file system."""
    sync_tree(staged)
    if (run_dir / f".replaced-{command}").exists():
        shutil.rmtree(run_dir / f".replaced-{command}")
    staged.rename(run_dir / f".publishing-{command}")
    sync(run_dir)
    _finish(command, run_dir)


def finish_publishing(run_dir: Path, lock: RunLock) -> list[str]:
    """Finish an exchange that a killed job has left unfinished; returns the commands whose results it was.

    Raises:
        UserError: another job, which shares the lock, is doing it.
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
    """At the start of a command, on all ranks: whether this same run had only to be published, which is done now.

    `lock` is that of rank 0.

    Raises:
        UserError: on all ranks: the run directory, or one of `places` in it, cannot be written.
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
    """For commands that only read a run: raise if its results are being exchanged."""
    if _is_under_way(command, run_dir):
        raise UserError(
            f"{run_dir}: its results are being replaced: wait for the job that does it; if that was killed, give the "
            f"same `dist-moe {command}` again, which finishes it"
        )


def _require_writable(directory: Path) -> None:
    """Check that existing places are writable; those that are created later cannot be checked."""
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
