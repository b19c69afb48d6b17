"""One run directory: where each result of a run lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_moe.config.load import load_config
from dist_moe.config.schema import Config
from dist_moe.errors import UserError


@dataclass(frozen=True, slots=True)
class RunDir:
    """Names only; nothing is made by naming it."""

    path: Path

    @property
    def masks(self) -> Path:
        return self.path / "masks.zarr"

    @property
    def analysis(self) -> Path:
        """What an unfinished analysis goes on from: counts, and masks that are being written."""
        return self.path / "analysis"

    @property
    def metrics(self) -> Path:
        """One JSON line a step."""
        return self.path / "metrics.jsonl"

    @property
    def experts(self) -> Path:
        """The trained experts, there when training has ended."""
        return self.path / "experts"

    @property
    def checkpoints(self) -> Path:
        """What an unfinished run goes on from."""
        return self.path / "checkpoints"

    @property
    def stop(self) -> Path:
        """A file that a person or a script makes to have the run saved and ended."""
        return self.path / "STOP"

    @property
    def requeue(self) -> Path:
        """A file that a batch script makes for the same; still there afterwards, it means that the job shall go on."""
        return self.path / "REQUEUE"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    def resolved(self, command: str) -> Path:
        """The configuration that a command ran with."""
        return self.path / f"{command}.yaml"


def trained_run(path: Path) -> tuple[RunDir, Config]:
    """A run directory in which training has ended, and the configuration it ran with."""
    run = RunDir(path)
    if not path.is_dir():
        raise UserError(f"no run directory {path}: expected one that `dist-moe train` has written")
    if not run.resolved("train").is_file() or not run.experts.is_dir():
        raise UserError(
            f"{path}: no finished training there: expected train.yaml and experts/; run `dist-moe train` first"
        )
    return run, load_config(run.resolved("train"))


def require_absent(path: Path, overwrite: bool) -> None:
    """Refuse early to write over an earlier result."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: choose another run_dir, or set overwrite to replace it")
