"""Choosing a learning rate by one rule, from evaluations on validation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from dist_moe.artefacts import EXACT, read_sealed, write_sealed
from dist_moe.evaluation.measures import ANSWER_LOSS, DIVERGENCE, REFUSAL_LOSS, REFUSED_SAFE, REFUSED_UNSAFE
from dist_moe.evaluation.record import Evaluation
from dist_moe.evaluation.rows import Kind

FORMAT, VERSION = "dist_moe learning rates", 1
LEARNING_RATES = "learning-rates.json"
"""Its file, in the directory of all runs of a comparison."""
RULE = f"lowest mean of {REFUSAL_LOSS} and {ANSWER_LOSS}"
NUMBERS = (REFUSAL_LOSS, ANSWER_LOSS, DIVERGENCE, REFUSED_UNSAFE, REFUSED_SAFE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One learning rate of one variant."""

    lr: float
    loss: float
    """The number by which one is chosen: the mean of the refusal loss of unsafe rows and the answer loss of safe rows,
    each per token of the validation rows' responses, without a mask."""
    measures: dict[str, float]
    """On the validation rows, by name."""

    @classmethod
    def of(cls, lr: float, evaluation: Evaluation, kind: Kind) -> Tried | None:
        """From the evaluation of a run's rows of one kind. None: they have no response of one of the labels."""
        groups = evaluation.of(kind, "all")
        found = {
            name: measure.after.value
            for group in groups
            for name in NUMBERS
            if (measure := group.measures.get(name)) is not None and measure.after is not None
        }
        if REFUSAL_LOSS not in found or ANSWER_LOSS not in found:
            return None
        return cls(lr=lr, loss=(found[REFUSAL_LOSS] + found[ANSWER_LOSS]) / 2, measures=found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A variant's learning rate, and all that were tried, in ascending order."""

    lr: float
    tried: list[Tried]

    @classmethod
    def of(cls, tried: Sequence[Tried]) -> Choice:
        """The rule: the lowest loss; of equal ones the smallest rate."""
        ascending = sorted(tried, key=lambda each: each.lr)
        return cls(lr=min(ascending, key=lambda each: each.loss).lr, tried=ascending)

    @property
    def is_at_end(self) -> bool:
        """Whether a smaller or larger rate than all that were tried might be better."""
        return len(self.tried) > 1 and self.lr in (self.tried[0].lr, self.tried[-1].lr)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRates:
    """What was chosen for each variant, and on what."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    rule: str
    seed: int
    """Of the division of the rows, and of the runs."""
    share: float
    """Of the training rows, for validation."""
    num_fitted: int
    """Rows that were trained on."""
    num_validation: int
    """Rows that were left out to choose by; they are training rows of the comparison."""
    validation_hash: str
    choices: dict[str, Choice]
    """By variant."""

    def write(self, path: Path) -> None:
        write_sealed(path, FORMAT, VERSION, asdict(self))

    @classmethod
    def read(cls, path: Path) -> LearningRates:
        """What `write` wrote.

        Raises:
            UserError: it cannot be read, is of another version, or not as it was written.
        """
        return read_sealed(path, FORMAT, VERSION, cls, "remove it, and run `dist-moe compare --lrs` again")[0]

    def of(self, lrs: Mapping[str, float]) -> LearningRates:
        """Only the choices of variants that were trained with them; `lrs` are those of a comparison, whose variants
        have got their rate's name."""
        kept = {name: each for name, each in self.choices.items() if f"{name},lr={each.lr!r}" in lrs}
        return replace(self, choices=kept)
