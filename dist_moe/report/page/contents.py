"""What a page is made of: the artefacts of runs as they were read, and what of them is missing. Nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dist_moe.config.schema import Config
from dist_moe.evaluation.comparison import Comparison
from dist_moe.evaluation.curve import Curve
from dist_moe.evaluation.learning_rates import LearningRates
from dist_moe.evaluation.record import Evaluation
from dist_moe.store.counts import Counts
from dist_moe.store.read import MaskStore
from dist_moe.training.adjustments import Adjustment
from dist_moe.training.steps import Step
from dist_moe.weights.facts import RunFacts
from dist_moe.weights.parts import Expert
from dist_moe.weights.verify import Verification


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Of a run whose training has ended."""

    facts: RunFacts
    experts: list[Expert]
    """Those that were updated at least once."""
    digest: str
    """Of their index, and so of every byte of theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContents:
    """One run. What is None or empty was not done yet, or is not at hand."""

    path: Path
    """As it was given."""
    config: Config | None
    masks: MaskStore | None
    """Those of the training; before it, those of the analysis."""
    later_masks: tuple[MaskStore, ...]
    """Of `train.revisions`, or of `train.adjust`."""
    counts: Counts | None
    """What `masks` were selected from, or what they will be."""
    training: Training | None
    steps: tuple[Step, ...]
    """Also of a training that has not ended."""
    adjustments: tuple[Adjustment, ...]
    """What `train.adjust` has found and changed in mid-run."""
    evaluation: Evaluation | None
    curve: Curve | None
    """Of shares of the trained change."""
    prompts: Mapping[str, str]
    """Texts of evaluated rows by id; empty where their files are no longer as they were."""
    verification: Verification | None
    """Of an export, if one was given to be compared."""
    notes: tuple[str, ...]
    """Why something that should be there is not."""

    @property
    def name(self) -> str:
        """The run directory's; a path may say more of a machine than readers should know."""
        return self.path.resolve().name


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonContents:
    """Variants of a run side by side."""

    path: Path
    comparison: Comparison
    rates: LearningRates | None
    """How its learning rates were chosen. None: they were given."""

    @property
    def name(self) -> str:
        return self.path.resolve().name


@dataclass(frozen=True, slots=True, kw_only=True)
class PageContents:
    """In the order in which they were given."""

    runs: tuple[RunContents, ...]
    comparisons: tuple[ComparisonContents, ...]
