"""Intervals by the bootstrap over prompts: what other prompts of the same kind might have shown.

Units (a prompt with all its rows, or two prompts of a pair) are drawn whole, with replacement, by
`resamples.bootstrap_weights`. An interval is from the 2.5 % to the 97.5 % percentile of the resamples.

Legend: P rows, N resamples, K statistics.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256

import numpy as np

from dist_moe.stats.design import Kinship
from dist_moe.stats.proportions import LEVEL
from dist_moe.stats.resamples import bootstrap_weights

Statistic = Callable[[np.ndarray], np.ndarray]
"""Weights, whole numbers as float64 [N, P], how often each row counts -> [N, K]; NaN where a statistic has no value."""
CELLS_AT_ONCE = 4_000_000
"""Weights in memory at a time."""
PAIRS_AT_ONCE = 4096
"""Of up to so many pairs of an unsafe and a safe row, each is looked at; of more, rows are sorted."""


def intervals(
    statistic: Statistic, kinship: Kinship, unsafe_P: np.ndarray, num_resamples: int, key: tuple[int | str, ...]
) -> np.ndarray:
    """[2, K]: low and high end of each statistic's interval; NaN where no resample has a value.

    `key`, such as (seed, what is computed), decides what is drawn.
    """
    generator = np.random.default_rng(int.from_bytes(sha256(json.dumps(key).encode()).digest()))
    design, at_once = kinship.design(unsafe_P), max(1, CELLS_AT_ONCE // len(unsafe_P))
    found = []
    for start in range(0, num_resamples, at_once):
        number = min(at_once, num_resamples - start)
        found.append(statistic(bootstrap_weights(unsafe_P, design, number, generator).astype(np.float64)))
    values_NK = np.concatenate(found)
    ends_2K = np.full((2, values_NK.shape[1]), np.nan)
    missing_NK = np.isnan(values_NK)
    whole, some = ~missing_NK.any(axis=0), missing_NK.any(axis=0) & ~missing_NK.all(axis=0)
    tail = 50 * (1 - LEVEL)
    for columns, percentile in ((whole, np.percentile), (some, np.nanpercentile)):  # the same; the former is quicker
        if columns.any():
            ends_2K[:, columns] = percentile(values_NK[:, columns], [tail, 100 - tail], axis=0)
    return ends_2K


def ratio(weights_NP: np.ndarray, numerator_P: np.ndarray, denominator_P: np.ndarray) -> np.ndarray:
    """[N]: sum of numerators by sum of denominators, each row as often as it counts; NaN where the latter is 0."""
    below_N = weights_NP @ denominator_P
    with np.errstate(invalid="ignore"):
        return np.where(below_N == 0, np.nan, weights_NP @ numerator_P / np.where(below_N == 0, 1, below_N))


def area_under_curve(weights_NP: np.ndarray, scores_P: np.ndarray, unsafe_P: np.ndarray) -> np.ndarray:
    """[N]: the chance that an unsafe row has a higher score than a safe one, a tie being half; NaN without both.

    Sums of halves of whole numbers are exact in any order, so both ways give the same bits.
    """
    unsafe_NU, safe_NS = weights_NP[:, unsafe_P], weights_NP[:, ~unsafe_P]
    pairs_N = unsafe_NU.sum(axis=1) * safe_NS.sum(axis=1)
    score_U, score_S = scores_P[unsafe_P], scores_P[~unsafe_P]
    if len(score_U) * len(score_S) <= PAIRS_AT_ONCE:
        below_SU = (score_S[:, None] < score_U) + (score_S[:, None] == score_U) / 2
        below_NU = safe_NS @ below_SU
    else:
        sums_NS1 = np.zeros((len(safe_NS), len(score_S) + 1))
        order = np.argsort(score_S, kind="stable")
        np.cumsum(safe_NS[:, order], axis=1, out=sums_NS1[:, 1:])
        first_U, last_U = (np.searchsorted(score_S[order], score_U, side) for side in ("left", "right"))
        below_NU = (sums_NS1[:, first_U] + sums_NS1[:, last_U]) / 2
    won_N = (unsafe_NU * below_NU).sum(axis=1)
    return np.where(pairs_N == 0, np.nan, won_N / np.where(pairs_N == 0, 1, pairs_N))
