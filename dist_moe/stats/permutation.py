"""Permutation test of risk_diff for all experts at once, which exchanges the labels of whole prompts.

The tokens of one prompt are routed similarly, and so are the rows of one prompt; tests on single tokens or rows would
call nearly everything significant.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from dist_moe.stats.contrast import Estimate, risk_diffs
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.design import Design
from dist_moe.stats.estimates import risk_diff
from dist_moe.stats.labelings import labelings

Statistic = Literal["difference", "standardized"]

TIE = 1e-12
"""Differences that are equal in exact arithmetic may differ by rounding. Within this tolerance they count as equal,
which makes p larger."""


@dataclass(frozen=True, slots=True)
class PermutationTest:
    """One-sided test: do unsafe prompts use the expert more?"""

    p_LE: np.ndarray
    """float64 [L, E]: p of each expert alone."""
    family_p_LE: np.ndarray
    """Adjusted for all L * E experts (Westfall, Young 1993, single-step max-T): the probability, if labels are
    exchangeable, that any expert of the batch differs as much. `statistic` says how experts are compared."""
    q_LE: np.ndarray
    """q-values (Benjamini, Hochberg 1995): the smallest false discovery rate at which the expert is called."""
    smallest_p: float
    """The smallest p-value that is possible with this number of labelings."""


def permutation_test(
    counts: RoutingCounts,
    unsafe_P: np.ndarray,
    design: Design,
    *,
    num_permutations: int,
    estimate: Estimate,
    statistic: Statistic,
    generator: np.random.Generator,
) -> PermutationTest:
    """Compare risk_diff with its values under other labelings of the same prompts (see `labelings`).

    The maximum over experts is of the difference or, with `standardized`, of the difference / (s + median s), where s
    is the expert's `spread_over_labelings`. s is the same for all labelings, so the test stays exact, and the p-values
    of single experts do not change. The median keeps experts that are hardly used, whose s is small, from deciding the
    maximum (Tusher et al. 2001).

    p = #{>= observed} / N over all N labelings if they can be listed, else (1 + #{>= observed}) / (1 + N) over N random
    ones (Phipson, Smyth 2010), which is never 0.
    """
    labels_NP, exact = labelings(unsafe_P, design, num_permutations, generator)
    observed_X = risk_diff(counts, unsafe_P, estimate).ravel() - TIE
    unit_X = np.ones(observed_X.size)
    if statistic == "standardized":
        spread_X = spread_over_labelings(counts, unsafe_P, design, estimate).ravel()
        if (spread_X > TIE).any():
            unit_X = spread_X + np.median(spread_X[spread_X > TIE])
    reached_X = np.empty(observed_X.size, np.int64)
    largest_N = np.full(len(labels_NP), -np.inf)
    for columns, diff_NX in risk_diffs(labels_NP, ~labels_NP, counts, estimate):
        reached_X[columns] = (diff_NX >= observed_X[columns]).sum(axis=0)
        diff_NX /= unit_X[columns]
        np.maximum(largest_N, diff_NX.max(axis=1), out=largest_N)
    family_X = len(largest_N) - np.searchsorted(np.sort(largest_N), observed_X / unit_X)
    own = 0 if exact else 1
    p_X, family_p_X = ((reached + own) / (len(labels_NP) + own) for reached in (reached_X, family_X))
    shape = counts.counts_PLE.shape[1:]
    return PermutationTest(
        p_X.reshape(shape),
        family_p_X.reshape(shape),
        benjamini_hochberg(p_X).reshape(shape),
        1 / (len(labels_NP) + own),
    )


def spread_over_labelings(
    counts: RoutingCounts, unsafe_P: np.ndarray, design: Design, estimate: Estimate
) -> np.ndarray:
    """Standard deviation of risk_diff over all labelings, to first order, up to a factor that is the same for all
    experts.

    Let z be the sum over a block's rows of c - r t (micro; r is the rate of all prompts) or of c / t (macro). In a
    stratum of n blocks, a of them unsafe, the sum of the unsafe blocks' z has the variance a (n - a) / (n (n - 1)) Σ (z
    - mean z)² (sampling without replacement, Cochran 1977, ch. 2); strata add up. float64 [L, E].
    """
    rate_LE = counts.counts_PLE.sum(axis=0) / counts.tokens_P.sum()
    variance_LE = np.zeros(rate_LE.shape)
    for rows_KR in design.strata():
        size, unsafe = len(rows_KR), int(unsafe_P[rows_KR[:, 0]].sum())
        if 0 < unsafe < size:
            counts_KRLE, tokens_KR11 = counts.counts_PLE[rows_KR], counts.tokens_P[rows_KR][..., None, None]
            value_KRLE = counts_KRLE - rate_LE * tokens_KR11 if estimate == "micro" else counts_KRLE / tokens_KR11
            value_KLE = value_KRLE.sum(axis=1)
            value_KLE -= value_KLE.mean(axis=0)
            variance_LE += unsafe * (size - unsafe) / (size * (size - 1)) * (value_KLE**2).sum(axis=0)
    return np.sqrt(variance_LE)


def benjamini_hochberg(p_X: np.ndarray) -> np.ndarray:
    """q-values, float64 [X]: the least of p_(j) X / j over all j from the p's own rank on."""
    order = np.argsort(p_X, kind="stable")
    scaled_X = p_X[order] * p_X.size / np.arange(1, p_X.size + 1)
    q_X = np.empty_like(p_X)
    q_X[order] = np.minimum.accumulate(scaled_X[::-1])[::-1]
    return np.minimum(q_X, 1.0)
