"""One run directory: where each result of a run lies."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_moe.artefacts import checked
from dist_moe.config.load import load_config
from dist_moe.config.objective import active_settings
from dist_moe.config.schema import Config
from dist_moe.errors import UserError, shown
from dist_moe.trackers.metrics import METRICS
from dist_moe.weights.facts import RunFacts
from dist_moe.weights.parts import INDEX
from dist_moe.weights.trained import ADVICE, TrainedExperts
from dist_moe.workflows.results import require_published


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


FREE = (
    "masks",
    "revisions",
    "objective",
    "trackers",
    "audit",
    "micro_batch_size",
    "activation_checkpointing",
    "deepspeed_config",
)
"""Settings of the train section that change where and how a step is computed, not what; the objective's are apart."""


def result_settings(config: Config) -> dict[str, Any]:
    """The settings that training's results follow from, beside what is in the files that it names; JSON values."""
    train = {f"train.{key}": value for key, value in asdict(config.train).items() if key not in FREE}
    train |= {f"train.objective.{key}": value for key, value in active_settings(config.train.objective).items()}
    return {
        "model.dtype": config.model.dtype,
        "data.max_length": config.data.max_length,
        "data.refusal": config.data.refusal,
        "batches.batch_size": config.batches.batch_size,
        "batches.safe_ratio": config.batches.safe_ratio,
        "seed": config.seed,
        **{key: list(value) if isinstance(value, tuple) else value for key, value in train.items()},
    }


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """A run directory in which training has ended, every byte of whose experts was checked."""

    dir: RunDir
    config: Config
    """What training ran with."""
    experts: TrainedExperts
    facts: RunFacts

    @classmethod
    def open(cls, path: Path) -> TrainedRun:
        """Read and check all but the base model.

        Raises:
            UserError: something is missing or not as it was written, or train.yaml is not what training ran with.
        """
        run = RunDir(path)
        file = run.resolved("train")
        if not path.is_dir():
            raise UserError(f"no run directory {path}: expected one that `dist-moe train` has written")
        require_published(path, "train")
        if not file.is_file() or not run.experts.is_dir():
            raise UserError(
                f"{path}: no finished training there: expected train.yaml and experts/; run `dist-moe train` first"
            )
        config, experts = load_config(file), TrainedExperts.open(run.experts)
        facts = checked(RunFacts, experts.facts, f"{run.experts / INDEX}: facts", ADVICE)
        here = result_settings(config)
        for key, there in facts.settings.items():
            if here.get(key) != there:
                raise UserError(
                    f"{file}: {key} is {shown(here.get(key))}, but {run.experts} was trained with {shown(there)}: "
                    "restore it"
                )
        return cls(run, config, experts, facts)


def require_absent(path: Path, overwrite: bool) -> None:
    """Refuse early to write over an earlier result."""
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: choose another run_dir, or set overwrite to replace it")
