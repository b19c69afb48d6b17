"""Reads metrics.jsonl: what each step has trained, and with what loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dist_moe.artefacts import checked_lines
from dist_moe.files import read_text

ADVICE = "restore it from a copy, or train again"


@dataclass(frozen=True, slots=True)
class TermMean:
    """One term of the objective."""

    mean: float
    """Without the term's weight."""
    tokens: int
    """That it is of; of 0 the mean is 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A line of the file; it has more keys. docs/formats.md says what each is."""

    step: int
    batch: int
    batch_id: str
    category: str
    mask_revision: int
    mask_hash: str
    loss: float
    terms: dict[str, TermMean]
    grad_norm: float
    num_active: int
    num_stepped: int
    lr: float
    audited: bool
    trains: str = "experts"
    """What the step trained."""
    tokens_per_second: float = 0.0
    """Of all ranks together; 0: not said."""


def read_steps(metrics: Path) -> tuple[Step, ...]:
    """All whole lines; a last one without its end is of a run that is still writing it.

    Raises:
        UserError: names the line that is not a step's.
    """
    *lines, _ = read_text(metrics, "the steps").split("\n")
    return tuple(checked_lines(Step, lines, metrics, ADVICE))
