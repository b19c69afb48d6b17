"""Would other prompts of the same kind have selected the same experts?"""

import numpy as np

from dist_moe.rules.rules import RULES
from dist_moe.rules.select import OF_DIFFERENCE, SelectionRule, threshold_top_k
from dist_moe.stats.evidence import Evidence

WHOLE_RULES = frozenset({"shrunk", "esft_token", "esft_gate", "gradient"})
"""Rules that look at more than a difference, and are cheap enough to run on every half-sample."""


def stability(batch: Evidence, rule: SelectionRule) -> np.ndarray:
    """Share of half-samples in which the batch's own rule selects each expert, float64 [L, E].

    `significant` would need a test of each half-sample, and `stable` is a frequency itself: theirs is that of threshold
    and top_k, as is that of the controls. 0 where an arm has one prompt.
    """
    if rule.name not in WHOLE_RULES:
        choose = OF_DIFFERENCE.get(rule.name, threshold_top_k)
        return batch.frequency_LE(lambda diff_LE: choose(diff_LE, rule))
    times_LE = np.zeros(batch.counts.counts_PLE.shape[1:], np.int64)
    if not batch.can_be_halved:
        return times_LE.astype(np.float64)
    for chosen_P in batch.half_samples_NP:
        times_LE += RULES[rule.name](batch.of(chosen_P), rule)
    return times_LE / len(batch.half_samples_NP)
