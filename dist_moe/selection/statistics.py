"""Computes masks and their statistics from the counts of batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dist_moe.data.index import BatchIndex
from dist_moe.errors import UserError
from dist_moe.progress import progress
from dist_moe.rules import RULES, Rule
from dist_moe.rules.threshold_top_k import ThresholdTopK
from dist_moe.selection.evidence import evidence_of_each
from dist_moe.selection.null import null_count
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.estimates import risk_diff
from dist_moe.stats.evidence import Evidence, Population
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.settings import StatisticsConfig
from dist_moe.store.mask_plan import MaskResults

if TYPE_CHECKING:
    from dist_moe.config.schema import AnalysisConfig

OF_EXPERTS = (
    "macro_risk_diff",
    "shrunk_risk_diff",
    "interval_low",
    "interval_high",
    "p_value",
    "family_p_value",
    "q_value",
    "stability",
)


def selection_rule(analysis: AnalysisConfig) -> Rule:
    """The rule that the configuration names.

    Raises:
        UserError: the rule needs something that the configuration turns off.
    """
    cls = RULES.find(analysis.rule)
    rule = cls(**{field.name: getattr(analysis, field.name) for field in fields(cls)})
    if "tests" in rule.needs and not analysis.statistics.permutations:
        raise UserError(
            f"analysis.rule = {rule.name} needs tests, but analysis.statistics.permutations is 0: set it to 2000, say"
        )
    if "gates" in rule.needs and not analysis.gates:
        raise UserError(f"analysis.rule = {rule.name} needs analysis.gates: set it to true")
    require_all_experts(analysis)
    return rule


def require_all_experts(analysis: AnalysisConfig) -> None:
    """Refuse a rule that needs whole models if ranks share experts.

    Raises:
        UserError: the rule needs gradients, and `analysis.ep_size` is above 1.
    """
    rule = RULES.find(analysis.rule)
    if "gradients" in rule.needs and analysis.ep_size > 1:
        raise UserError(
            f"analysis.rule = {rule.name} needs all experts on each rank, but analysis.ep_size is {analysis.ep_size}: "
            "set it to 1"
        )


def statistic_kinds(rule: Rule, settings: StatisticsConfig) -> Mapping[str, tuple[str, int]]:
    """Names of the statistics that `batch_results` computes, with type and number of axes as in a `MaskPlan`."""
    if not settings.permutations:
        return {}
    of_batches = ("smallest_p_value", *(("null_mean", "null_high") if rule.has_null else ()))
    return dict.fromkeys(OF_EXPERTS, ("float32", 3)) | dict.fromkeys(of_batches, ("float32", 1))


def batch_results(
    counts: RoutingCounts,
    index: BatchIndex,
    rule: Rule,
    settings: StatisticsConfig,
    seed: int,
    population: Population,
    *,
    show_progress: bool,
) -> MaskResults:
    """Masks and statistics of batches, from the counts of their prompts and what is known of all batches."""
    masks, diffs, rows = [], [], []
    batches = evidence_of_each(index, counts, settings, seed, population)
    with progress("Batches", len(index), "batches", quiet=not show_progress) as advance:
        for batch in batches:
            masks.append(rule.select(batch))
            diffs.append(batch.risk_diff_LE)
            rows.append(batch_statistics(batch, rule))
            advance(1)
    chosen = ExpertMasks(np.array(masks))
    return MaskResults(
        masks=chosen,
        signs_B3=MaskResults.signs(chosen, np.array(diffs)),
        statistics={name: np.array([row[name] for row in rows], np.float32) for name in rows[0]},
    )


def batch_statistics(batch: Evidence, rule: Rule) -> dict[str, np.ndarray | float]:
    """The statistics of one batch by name; docs/statistics.md defines them."""
    if not batch.settings.permutations:
        return {}
    low_LE, high_LE = batch.interval
    row: dict[str, np.ndarray | float] = {
        "macro_risk_diff": risk_diff(batch.counts, batch.unsafe_P, "macro"),
        "shrunk_risk_diff": batch.shrunk_LE,
        "interval_low": low_LE,
        "interval_high": high_LE,
        "p_value": batch.test.p_LE,
        "family_p_value": batch.test.family_p_LE,
        "q_value": batch.test.q_LE,
        "stability": rule.stability(batch),
        "smallest_p_value": batch.test.smallest_p,
    }
    if not rule.has_null:
        return row
    null = null_count(batch, rule, batch.settings.null_draws)
    return row | {"null_mean": null.mean, "null_high": null.high}


def add_statistics(frame: pd.DataFrame, pooled: Evidence, rule: Rule) -> pd.DataFrame:
    """Add columns to the table of all prompts pooled, as in the table of a batch."""
    low_LE, high_LE = pooled.interval
    columns = {
        "interval_low": low_LE,
        "interval_high": high_LE,
        "q_value": pooled.test.q_LE,
        "stability": rule.like(ThresholdTopK).stability(pooled),
    }
    where = frame["layer"].to_numpy(), frame["expert"].to_numpy()
    return frame.assign(**{name: value_LE[where] for name, value_LE in columns.items()})
