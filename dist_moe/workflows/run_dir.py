"""One run directory: where each result of a run lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.trackers.metrics import METRICS


@dataclass(frozen=True, slots=True)
class RunDir:
    """Names only; nothing is made by naming it."""

    path: Path

    @property
    def counts(self) -> Path:
        return self.path / "counts.zarr"

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
        return self.path / METRICS

    @property
    def experts(self) -> Path:
        """The trained experts, there when training has ended."""
        return self.path / "experts"

    @property
    def checkpoints(self) -> Path:
        """What an unfinished run goes on from."""
        return self.path / "checkpoints"

    @property
    def training(self) -> Path:
        """A run directory in this one: of a training that will replace results when it has ended."""
        return self.path / "training"

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


def require_absent(path: Path, overwrite: bool) -> None:
    """Refuse early to write over an earlier result."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: choose another run_dir, or set overwrite to replace it")
