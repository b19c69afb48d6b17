"""Estimates of a batch's risk_diff: value, bootstrap interval, sampling variance, shrinkage."""

import numpy as np

from dist_moe.stats.contrast import Estimate, all_risk_diffs, risk_diffs
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.design import Design
from dist_moe.stats.resamples import bootstrap_weights


def risk_diff(counts: RoutingCounts, unsafe_P: np.ndarray, estimate: Estimate) -> np.ndarray:
    """float64 [L, E]: `micro` (all tokens of an arm pooled) or `macro` (mean of its prompts' rates).

    `micro` is the definition of risk_diff, and equals `dist_moe.stats.table.risk_table` bit for bit.
    """
    return all_risk_diffs(unsafe_P[None], ~unsafe_P[None], counts, estimate)[0]


def bootstrap_interval(
    counts: RoutingCounts,
    unsafe_P: np.ndarray,
    design: Design,
    *,
    estimate: Estimate,
    num_resamples: int,
    confidence: float,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of risk_diff over prompts: lower and upper end, float64 [L, E] each.

    Prompts are resampled, not tokens, because the tokens of one prompt are not independent (Efron, Tibshirani 1993, ch.
    13); all rows of a prompt, and both prompts of a pair, are resampled together for the same reason. With eight
    prompts in an arm the interval is too short: its real coverage is nearer 0.9 than 0.95. If an arm has one prompt,
    nothing is known about other prompts, and the interval is -1 to 1.
    """
    if min(design.num_units(unsafe_P)) < 2:
        whole_LE = np.ones(counts.counts_PLE.shape[1:])
        return -whole_LE, whole_LE
    weights_NP = bootstrap_weights(unsafe_P, design, num_resamples, generator)
    tail = (1 - confidence) / 2
    ends_2X = np.empty((2, counts.counts_PLE[0].size))
    for columns, diff_NX in risk_diffs(weights_NP * unsafe_P, weights_NP * ~unsafe_P, counts, estimate):
        ends_2X[:, columns] = np.quantile(diff_NX, [tail, 1 - tail], axis=0)
    low_LE, high_LE = ends_2X.reshape(2, *counts.counts_PLE.shape[1:])
    return low_LE, high_LE


def sampling_variance(counts: RoutingCounts, unsafe_P: np.ndarray, design: Design) -> np.ndarray:
    """Variance of a batch's micro risk_diff over the choice of its prompts, float64 [L, E].

    Each arm's rate r = Σ c / Σ t is a ratio estimate. To first order a row adds (c - r t) / Σ t to it, and a unit z,
    the sum over its unsafe rows less that over its safe ones. So the variance is the sum of n / (n - 1) Σ (z - mean z)²
    over three strata (Cochran 1977, ch. 5, 6 and 9): the n units of the unsafe arm alone, those of the safe arm alone,
    and those of both. A stratum of one is compared with 0, the mean of all z, and its z² is added. Infinite when an arm
    has one unit, which says nothing of spread.
    """
    shape_LE = counts.counts_PLE.shape[1:]
    if min(design.num_units(unsafe_P)) < 2:
        return np.full(shape_LE, np.inf)
    effect_PLE = np.empty((len(unsafe_P), *shape_LE))
    for arm_P, sign in ((unsafe_P, 1), (~unsafe_P, -1)):
        counts_NLE, tokens_N = counts.counts_PLE[arm_P], counts.tokens_P[arm_P]
        rate_LE = counts_NLE.sum(axis=0) / tokens_N.sum()
        effect_PLE[arm_P] = (counts_NLE - rate_LE * tokens_N[:, None, None]) * (sign / tokens_N.sum())
    variance_LE = np.zeros(shape_LE)
    for units in design.units(unsafe_P):
        effect_ULE = np.zeros((units.number, *shape_LE))
        np.add.at(effect_ULE, units.unit_R, effect_PLE[units.rows_R])
        if units.number > 1:
            effect_ULE -= effect_ULE.mean(axis=0)
        variance_LE += units.number / max(1, units.number - 1) * (effect_ULE**2).sum(axis=0)
    return variance_LE


def shrink(
    risk_diff_LE: np.ndarray, variance_LE: np.ndarray, pooled_LE: np.ndarray, between_L: np.ndarray
) -> np.ndarray:
    """Move a batch's risk_diff towards that of all prompts, the more so the noisier it is: float64 [L, E].

    Empirical Bayes, normal-normal (Efron, Morris 1973): m + τ² / (τ² + v) (d - m), where m is the pooled value, v the
    batch's sampling variance and τ² the variance between batches, one number for each layer. A value with v = 0 is
    kept.
    """
    between_L1 = between_L[:, None]
    keep_LE = np.divide(between_L1, between_L1 + variance_LE, out=np.ones_like(variance_LE), where=variance_LE > 0)
    return pooled_LE + keep_LE * (risk_diff_LE - pooled_LE)
