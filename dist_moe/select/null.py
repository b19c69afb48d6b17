"""How many experts a rule selects when the labels mean nothing."""

from dataclasses import dataclass

import numpy as np

from dist_moe.rules.rules import COUNTED_AS, RULES
from dist_moe.rules.select import SelectionRule
from dist_moe.stats.evidence import Evidence
from dist_moe.stats.labelings import labelings


@dataclass(frozen=True, slots=True)
class NullCount:
    """Selected experts over labelings of one batch's prompts."""

    mean: float
    high: float
    """95 % quantile."""


def has_null(rule: SelectionRule) -> bool:
    """Whether the rule's number of experts follows from the batch's labels: for some it is fixed, and in `shrunk` other
    batches' labels are part of it.
    """
    return rule.name not in ("budget_per_layer", "steermoe", "shrunk", "gradient")


def null_count(batch: Evidence, rule: SelectionRule, num_draws: int) -> NullCount:
    """The rule run on the same prompts with permuted labels, `num_draws` times (or on all labelings, if fewer).

    Only for a rule that `has_null`.
    """
    assert has_null(rule)
    select = RULES[COUNTED_AS.get(rule.name, rule.name)]
    labels_NP, _ = labelings(batch.unsafe_P, batch.design, num_draws, batch.generator("null"))
    numbers_N = [int(select(batch.relabelled(unsafe_P), rule).sum()) for unsafe_P in labels_NP]
    return NullCount(float(np.mean(numbers_N)), float(np.quantile(numbers_N, 0.95, method="higher")))
