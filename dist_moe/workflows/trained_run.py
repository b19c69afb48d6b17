"""TrainedRun: a run whose training has finished; export and evaluation start from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_moe.artefacts import checked
from dist_moe.config.load import load_config
from dist_moe.config.objective import active_settings
from dist_moe.config.schema import Config
from dist_moe.errors import UserError, shown
from dist_moe.weights.facts import RunFacts
from dist_moe.weights.parts import INDEX
from dist_moe.weights.trained import ADVICE, TrainedExperts
from dist_moe.workflows.results import require_published
from dist_moe.workflows.run_dir import RunDir

FREE = (
    "masks",
    "revisions",
    "objective",
    "adjust",
    "trackers",
    "audit",
    "plan",
    "micro_batch_size",
    "activation_checkpointing",
    "deepspeed_config",
)
"""Training settings that change where and how a step is computed, but not its result. Those of
`objective` and `adjust` are separate."""


def result_settings(config: Config) -> dict[str, Any]:
    """The settings that determine the result of training, besides the contents of files: JSON values."""
    train = {f"train.{key}": value for key, value in asdict(config.train).items() if key not in FREE}
    train |= {f"train.objective.{key}": value for key, value in active_settings(config.train.objective).items()}
    train |= {f"train.adjust.{key}": value for key, value in config.train.adjust.facts.items()}
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
    """A run directory in which training has finished; every byte of its experts has been verified."""

    dir: RunDir
    config: Config
    """The configuration of the training."""
    experts: TrainedExperts
    facts: RunFacts

    @classmethod
    def open(cls, path: Path, settings: Sequence[str] = (), *, every_byte: bool = True) -> TrainedRun:
        """Read and verify everything but the base model.

        Args:
            path: the run directory.
            settings: words of a command line that override its configuration.
            every_byte: compare all bytes of the trained experts with their digests. Without it only their index is
                read: another rank has done that.

        Raises:
            UserError: something is missing or has changed since it was written, or train.yaml differs from the
                training's.
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
        config, experts = load_config(file, settings), TrainedExperts.open(run.experts, every_byte=every_byte)
        facts = checked(RunFacts, experts.facts, f"{run.experts / INDEX}: facts", ADVICE)
        here = result_settings(config)
        for key, there in facts.settings.items():
            if here.get(key) != there:
                raise UserError(
                    f"{file}: {key} is {shown(here.get(key))}, but {run.experts} was trained with {shown(there)}: "
                    "restore it"
                )
        return cls(run, config, experts, facts)
