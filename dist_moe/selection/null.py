"""Counts how many experts a rule selects when labels are permuted."""

from dataclasses import dataclass

import numpy as np

from dist_moe.rules import Rule
from dist_moe.stats.evidence import Evidence
from dist_moe.stats.labelings import labelings


@dataclass(frozen=True, slots=True)
class NullCount:
    """Numbers of selected experts over labelings of one batch's prompts."""

    mean: float
    high: float
    """95 % quantile."""


def null_count(batch: Evidence, rule: Rule, num_draws: int) -> NullCount:
    """Run the rule on the same prompts with permuted labels, `num_draws` times (or on all labelings, if there are
    fewer).

    Only for rules with `has_null`. For a control, the rule that determines its number of experts is run.
    """
    assert rule.has_null
    labels_NP, _ = labelings(batch.unsafe_P, batch.design, num_draws, batch.generator("null"))
    numbers_N = rule.counted_as.numbers(batch, labels_NP)
    return NullCount(float(np.mean(numbers_N)), float(np.quantile(numbers_N, 0.95, method="higher")))
