"""Finds the checkpoints that `dist-moe checkpoint show` prints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.training.checkpoint_index import Checkpoint, checkpoint_directories, read_checkpoint
from dist_moe.weights.parts import INDEX
from dist_moe.workflows.run_dir import RunDir


def checkpoints(path: Path) -> Iterator[Checkpoint]:
    """The checkpoints in a run directory, or the single one at `path`; every byte of each is verified when it is read.

    Raises:
        UserError: there is none, or one is damaged.
    """
    run = RunDir(path)
    places = (run, RunDir(run.training))
    paths = [path] if (path / INDEX).is_file() else [p for r in places for p in checkpoint_directories(r.checkpoints)]
    if not paths:
        raise UserError(f"{path}: no checkpoint: expected a run directory with checkpoints/, or one checkpoint")
    yield from map(read_checkpoint, paths)
