"""Variants of a run side by side: each trained from several seeds, all scored on the same rows.

Legend: S seeds, P prompts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from dist_moe.artefacts import EXACT, write_sealed
from dist_moe.evaluation.rows import EvaluatedRow, Kind, Outcome
from dist_moe.stats.crossed import Mean, crossed_difference, crossed_mean

FORMAT, VERSION = "dist_moe comparison", 1
BASE = "base"
"""How the model that all variants start from is called."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of a row's outcome."""

    label: str
    """Of the rows that it is of: safe or unsafe."""
    read: Callable[[EvaluatedRow, Outcome, str], float]
    """From the row, its outcome, and the judge's name. NaN: the row says nothing of it."""
    is_rate: bool


def _refused(row: EvaluatedRow, outcome: Outcome, judge: str) -> float:
    verdict = outcome.judgements[judge].verdict
    return math.nan if verdict == "missing" else float(verdict == "refused")


def _loss(row: EvaluatedRow, outcome: Outcome, judge: str) -> float:
    return outcome.loss_sum / row.num_loss_tokens if row.num_loss_tokens else math.nan


def _divergence(row: EvaluatedRow, outcome: Outcome, judge: str) -> float:
    if outcome is row.before:
        return 0.0
    return row.kl_sum / row.num_loss_tokens if row.kl_sum is not None and row.num_loss_tokens else math.nan


MEASURES = {
    "refused (unsafe)": Measure("unsafe", _refused, True),
    "refused (safe)": Measure("safe", _refused, True),
    "KL to the base (safe)": Measure("safe", _divergence, False),
    "refusal loss (unsafe)": Measure("unsafe", _loss, False),
    "answer loss (safe)": Measure("safe", _loss, False),
}
"""Of each, the mean over prompts; rows of one prompt are one value, their mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A mean over seeds and prompts, or the difference of two on the same seeds and prompts."""

    value: float
    low: float
    high: float
    num_prompts: int

    @property
    def is_clear(self) -> bool:
        """Of a difference: whether it is more than other seeds and other prompts would explain."""
        return Mean(self.value, self.low, self.high).is_clear


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    seeds: list[int]
    judge: str
    kind: Kind
    """Of the rows: the others are not compared."""
    data_hash: str
    model_hash: str
    reference: str
    """The variant that all others are compared with."""
    num_experts: dict[str, list[int]]
    """Trained experts of each variant, by seed."""
    levels: dict[str, dict[str, Cell]]
    """Variant (or `base`) -> measure."""
    differences: dict[str, dict[str, Cell]]
    """Variant (or `base`) -> measure: it less the reference."""

    def write(self, path: Path) -> None:
        write_sealed(path, FORMAT, VERSION, asdict(self))


def levels_and_differences(
    rows: Mapping[str, Sequence[Sequence[EvaluatedRow]]], judge: str, reference: str
) -> tuple[dict[str, dict[str, Cell]], dict[str, dict[str, Cell]]]:
    """What `Comparison` has of these.

    Args:
        rows: variant -> for each of S seeds the evaluated rows, the same prompts everywhere.
        judge: whose verdicts count.
        reference: one of the variants.
    """
    columns = {BASE: [(each, "before") for each in rows[reference]]}
    columns |= {variant: [(each, "after") for each in of_seeds] for variant, of_seeds in rows.items()}
    levels: dict[str, dict[str, Cell]] = {variant: {} for variant in columns}
    differences: dict[str, dict[str, Cell]] = {variant: {} for variant in columns if variant != reference}
    for name, measure in MEASURES.items():
        tables = {
            variant: [_by_prompt(some, when, measure, judge) for some, when in of_seeds]
            for variant, of_seeds in columns.items()
        }
        prompts = sorted(set.intersection(*(set(table) for of_seeds in tables.values() for table in of_seeds)))
        if len(prompts) < 2:  # too few for an interval
            continue
        values = {
            variant: np.array([[table[prompt] for prompt in prompts] for table in of_seeds])
            for variant, of_seeds in tables.items()
        }
        for variant, values_SP in values.items():
            level = crossed_mean(values_SP, are_rates=measure.is_rate)
            levels[variant][name] = _cell(level, len(prompts))
            if variant != reference:
                difference = crossed_difference(values_SP, values[reference], are_rates=measure.is_rate)
                differences[variant][name] = _cell(difference, len(prompts))
    return levels, differences


def _by_prompt(rows: Sequence[EvaluatedRow], when: str, measure: Measure, judge: str) -> dict[str, float]:
    """Mean over a prompt's rows; a prompt with a row that says nothing is left out."""
    found: dict[str, list[float]] = {}
    for row in rows:
        outcome = row.outcome(when)
        if row.label == measure.label and outcome is not None:
            found.setdefault(row.prompt, []).append(measure.read(row, outcome, judge))
    means = {prompt: float(np.mean(values)) for prompt, values in found.items()}
    return {prompt: mean for prompt, mean in means.items() if not math.isnan(mean)}


def _cell(found: Mean, num_prompts: int) -> Cell:
    return Cell(value=found.value, low=found.low, high=found.high, num_prompts=num_prompts)
