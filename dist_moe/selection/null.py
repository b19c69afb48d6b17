"""How many experts a rule selects when the labels mean nothing."""

from dataclasses import dataclass

import numpy as np

from dist_moe.rules import Rule
from dist_moe.stats.evidence import Evidence
from dist_moe.stats.labelings import labelings


@dataclass(frozen=True, slots=True)
class NullCount:
    """Selected experts over labelings of one batch's prompts."""

    mean: float
    high: float
    """95 % quantile."""


def null_count(batch: Evidence, rule: Rule, num_draws: int) -> NullCount:
    """The rule run on the same prompts with permuted labels, `num_draws` times (or on all labelings, if fewer).

    Only for a rule that `has_null`. Of a control, the one that it is counted as.
    """
    assert rule.has_null
    labels_NP, _ = labelings(batch.unsafe_P, batch.design, num_draws, batch.generator("null"))
    numbers_N = [int(rule.counted_as.select(batch.relabelled(unsafe_P)).sum()) for unsafe_P in labels_NP]
    return NullCount(float(np.mean(numbers_N)), float(np.quantile(numbers_N, 0.95, method="higher")))
