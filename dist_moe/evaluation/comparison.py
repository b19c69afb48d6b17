"""Variants of a run side by side: each trained from several seeds, all scored on the same rows.

Legend: S seeds, P prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from dist_moe.artefacts import EXACT, read_sealed, write_sealed
from dist_moe.evaluation.measures import (
    ANSWER_LOSS,
    DIVERGENCE,
    REFUSAL_LOSS,
    REFUSED_SAFE,
    REFUSED_UNSAFE,
    refused,
)
from dist_moe.evaluation.rows import EvaluatedRow, Kind
from dist_moe.stats.crossed import Mean, crossed_difference, crossed_mean

FORMAT, VERSION = "dist_moe comparison", 2
COMPARISON = "comparison.json"
"""Its file, in the directory of all runs of a comparison."""
BASE = "base"
"""How the model that all variants start from is called."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number of a row's outcome."""

    label: str
    """Of the rows that it is of: safe or unsafe."""
    read: Callable[[EvaluatedRow, str, str], float | None]
    """From the row, `before` or `after`, and the judge's name. None: the row says nothing of it."""
    is_rate: bool


def _refused(row: EvaluatedRow, when: str, judge: str) -> float | None:
    return refused(row, judge, when)


def _loss(row: EvaluatedRow, when: str, judge: str) -> float | None:
    outcome = row.outcome(when)
    return outcome.loss_sum / row.num_loss_tokens if outcome is not None and row.num_loss_tokens else None


def _divergence(row: EvaluatedRow, when: str, judge: str) -> float | None:
    if when == "before":
        return 0.0
    return row.kl_sum / row.num_loss_tokens if row.kl_sum is not None and row.num_loss_tokens else None


MEASURES = {
    REFUSED_UNSAFE: Measure("unsafe", _refused, True),
    REFUSED_SAFE: Measure("safe", _refused, True),
    DIVERGENCE: Measure("safe", _divergence, False),
    REFUSAL_LOSS: Measure("unsafe", _loss, False),
    ANSWER_LOSS: Measure("safe", _loss, False),
}
"""Of each, the mean over prompts; rows of one prompt are one value, their mean. None can be below 0."""


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
    num_parameters: dict[str, list[int]]
    """Parameters that each variant could train, of experts and of dense weights, by seed."""
    lrs: dict[str, float]
    """Learning rate of each variant."""
    levels: dict[str, dict[str, Mean]]
    """Variant (or `base`) -> measure."""
    differences: dict[str, dict[str, Mean]]
    """Variant (or `base`) -> measure: it less the reference."""

    def write(self, path: Path) -> None:
        write_sealed(path, FORMAT, VERSION, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Comparison:
        """What `write` wrote.

        Raises:
            UserError: it cannot be read, is of another version, or not as it was written.
        """
        return read_sealed(path, FORMAT, VERSION, cls, "remove it, and run `dist-moe compare` again")[0]


def levels_and_differences(
    rows: Mapping[str, Sequence[Sequence[EvaluatedRow]]], judge: str, reference: str
) -> tuple[dict[str, dict[str, Mean]], dict[str, dict[str, Mean]]]:
    """What `Comparison` has of these.

    Args:
        rows: variant -> for each of S seeds the evaluated rows, the same prompts everywhere.
        judge: whose verdicts count.
        reference: one of the variants.
    """
    columns = {BASE: [(each, "before") for each in rows[reference]]}
    columns |= {variant: [(each, "after") for each in of_seeds] for variant, of_seeds in rows.items()}
    levels: dict[str, dict[str, Mean]] = {variant: {} for variant in columns}
    differences: dict[str, dict[str, Mean]] = {variant: {} for variant in columns if variant != reference}
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
            levels[variant][name] = crossed_mean(values_SP, are_rates=measure.is_rate, least=0.0)
            if variant != reference:
                difference = crossed_difference(values_SP, values[reference], are_rates=measure.is_rate)
                differences[variant][name] = difference
    return levels, differences


def _by_prompt(rows: Sequence[EvaluatedRow], when: str, measure: Measure, judge: str) -> dict[str, float]:
    """Mean over a prompt's rows; a prompt with a row that says nothing is left out."""
    found: dict[str, list[float | None]] = {}
    for row in rows:
        if row.label == measure.label:
            found.setdefault(row.prompt, []).append(measure.read(row, when, judge))
    known = {prompt: [each for each in values if each is not None] for prompt, values in found.items()}
    return {prompt: float(np.mean(some)) for prompt, some in known.items() if len(some) == len(found[prompt])}
