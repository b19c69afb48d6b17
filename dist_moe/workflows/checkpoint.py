"""What is in a run's checkpoints: what `dist-moe checkpoint show` runs."""

from __future__ import annotations

from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.training.checkpoint import INDEX, checkpoint_directories, read_checkpoint
from dist_moe.workflows.console import Say
from dist_moe.workflows.run_dir import RunDir


def show(path: Path, say: Say) -> None:
    """Say of each checkpoint in a run directory, or of one, its step, owners, bytes, facts; every byte is checked."""
    paths = [path] if (path / INDEX).is_file() else checkpoint_directories(RunDir(path).checkpoints)
    if not paths:
        raise UserError(f"{path}: no checkpoint: expected a run directory with checkpoints/, or one checkpoint")
    for each in paths:
        found = read_checkpoint(each)
        say(f"{each}: after step {found.step}, written by {found.index['num_ranks']} rank(s), complete")
        for name, part in found.index["files"].items():
            size = (each / name).stat().st_size
            say(f"  {name}: {len(part['experts'])} experts that have stepped, {size:,} bytes")
        for key, value in found.index["facts"].items():
            say(f"  {key}: {value}")
