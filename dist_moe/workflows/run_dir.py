"""The paths of a run directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.trackers.metrics import METRICS
from dist_moe.training.adjustments import ADJUSTMENTS


@dataclass(frozen=True, slots=True)
class RunDir:
    """Paths only; creates nothing."""

    path: Path

    @property
    def counts(self) -> Path:
        return self.path / "counts.zarr"

    @property
    def masks(self) -> Path:
        return self.path / "masks.zarr"

    @property
    def analysis(self) -> Path:
        """What an unfinished analysis resumes from: counted parts, and stores that are being written."""
        return self.path / "analysis"

    @property
    def rows(self) -> Path:
        """The rows as tokens, and their batches, as `count` or `train` has made them."""
        return self.path / "rows.safetensors"

    @property
    def metrics(self) -> Path:
        """One JSON line for each step."""
        return self.path / METRICS

    @property
    def plan(self) -> Path:
        """What the plan says of the run's memory, and what was measured."""
        return self.path / "plan.json"

    @property
    def experts(self) -> Path:
        """The trained experts; exists when training has finished."""
        return self.path / "experts"

    @property
    def adjustments(self) -> Path:
        """One JSON line for each time that `train.adjust` has evaluated the batches."""
        return self.path / ADJUSTMENTS

    @property
    def revisions(self) -> Path:
        """Masks that `train.adjust` has written during training, and their counts."""
        return self.path / "revisions"

    def revision(self, number: int) -> RunDir:
        """Where revision 1, 2, ... of the run's masks is: a directory with counts and masks."""
        return RunDir(self.revisions / f"r{number}")

    @property
    def checkpoints(self) -> Path:
        """What an unfinished training run resumes from."""
        return self.path / "checkpoints"

    @property
    def training(self) -> Path:
        """With `overwrite`: run directory of a training run whose results will replace the present ones when it has
        finished."""
        return self.path / "training"

    @property
    def stop(self) -> Path:
        """A file that a person or script creates to make the run save and stop."""
        return self.path / "STOP"

    @property
    def requeue(self) -> Path:
        """A file that a batch script creates to make the run save and stop; if it still exists afterwards, the job
        is requeued."""
        return self.path / "REQUEUE"

    def resolved(self, command: str) -> Path:
        """The configuration with which a command ran."""
        return self.path / f"{command}.yaml"


def require_absent(path: Path, overwrite: bool) -> None:
    """Raise early if an earlier result would be overwritten."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: choose another run_dir, or set overwrite to replace it")
