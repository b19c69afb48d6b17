"""From the counts of all batches to masks, and to what says how far they can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pandas as pd
from tqdm import tqdm

from dist_moe.config.schema import AnalysisConfig, StatisticsConfig
from dist_moe.errors import UserError
from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.estimates import risk_diff
from dist_moe.risk.evidence import Evidence, evidence
from dist_moe.risk.labelings import strata_of
from dist_moe.risk.null import null_count
from dist_moe.risk.population import PopulationSums
from dist_moe.risk.select import SelectionRule
from dist_moe.risk.stability import stability

POOLED_LIMIT = 1 << 24
"""Labelings times prompts up to which the pooled table is tested: 128 MiB of weights an arm."""


def selection_rule(analysis: AnalysisConfig) -> SelectionRule:
    """The rule that the configuration asks for.

    Raises:
        UserError: it needs statistics, which are off.
    """
    if analysis.rule == "significant" and not analysis.statistics.permutations:
        raise UserError(
            "analysis.rule = significant needs tests, but analysis.statistics.permutations is 0: set it to 2000, say"
        )
    return SelectionRule(
        name=analysis.rule,
        threshold=analysis.threshold,
        top_k=analysis.top_k,
        alpha=analysis.alpha,
        correction=analysis.correction,
        frequency=analysis.frequency,
        per_layer=analysis.per_layer,
        top_p=analysis.top_p,
    )


def batch_evidence(
    counts: RoutingCounts,
    unsafe_P: np.ndarray,
    batch_of_P: np.ndarray,
    pair_ids: Sequence[str | None],
    settings: StatisticsConfig,
    seed: int,
) -> list[Evidence]:
    """One for each batch, which knows of all; prompts are in the order of their batches."""
    starts = np.searchsorted(batch_of_P, np.arange(batch_of_P[-1] + 2)).tolist()
    batches = []
    for batch, rows in enumerate(map(slice, starts[:-1], starts[1:])):
        strata_P = strata_of(unsafe_P[rows], tuple(pair_ids[rows]))
        batches.append(evidence(counts.of(rows), unsafe_P[rows], strata_P, settings, seed, batch))
    population = reduce(add, map(PopulationSums.of, batches)).population()
    return [replace(batch, population=population) for batch in batches]


def pooled_evidence(
    counts: RoutingCounts, unsafe_P: np.ndarray, batch_of_P: np.ndarray, batches: Sequence[Evidence]
) -> Evidence | None:
    """All prompts as one batch, whose labels are exchanged within batches only; None if they are too many to test."""
    settings, num_prompts = batches[0].settings, counts.num_prompts
    if num_prompts * max(settings.permutations, settings.resamples) > POOLED_LIMIT:
        return None
    kept_P = counts.tokens_P > 0
    strata_P = np.zeros(num_prompts, np.int64)
    strata_P[kept_P] = np.concatenate([batch.strata_P for batch in batches])
    strata_P = np.where(strata_P > 0, strata_P + batch_of_P * (num_prompts + 1), -batch_of_P)
    return evidence(counts, unsafe_P, strata_P, settings, batches[0].seed, len(batches))


def batch_statistics(batches: Sequence[Evidence], rule: SelectionRule, *, show_progress: bool) -> dict[str, np.ndarray]:
    """What the store keeps beside rates and masks, float32 by name; docs/statistics.md says what each is."""
    rows = [
        _of_batch(batch, rule) for batch in tqdm(batches, desc="Statistics", unit="batch", disable=not show_progress)
    ]
    return {name: np.array([row[name] for row in rows]).astype(np.float32) for name in rows[0]}


def _of_batch(batch: Evidence, rule: SelectionRule) -> dict[str, np.ndarray | float]:
    low_LE, high_LE = batch.interval
    row: dict[str, np.ndarray | float] = {
        "macro_risk_diff": risk_diff(batch.counts, batch.unsafe_P, "macro"),
        "shrunk_risk_diff": batch.shrunk_LE,
        "interval_low": low_LE,
        "interval_high": high_LE,
        "p_value": batch.test.p_LE,
        "family_p_value": batch.test.family_p_LE,
        "q_value": batch.test.q_LE,
        "stability": stability(batch, rule),
        "smallest_p_value": batch.test.smallest_p,
    }
    null = null_count(batch, rule, batch.settings.null_draws)
    return row if null is None else row | {"null_mean": null.mean, "null_high": null.high}


def add_statistics(frame: pd.DataFrame, pooled: Evidence, rule: SelectionRule) -> pd.DataFrame:
    """The pooled table with columns as those of a batch's table in the store."""
    low_LE, high_LE = pooled.interval
    columns = {
        "interval_low": low_LE,
        "interval_high": high_LE,
        "q_value": pooled.test.q_LE,
        "stability": pooled.frequency_LE(rule),
    }
    where = frame["layer"].to_numpy(), frame["expert"].to_numpy()
    return frame.assign(**{name: value_LE[where] for name, value_LE in columns.items()})
