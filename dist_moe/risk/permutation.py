"""Could a difference as large come from labels that mean nothing? All experts at once, with the prompt as the unit.

Tokens of one prompt go to the same experts, so tests on tokens call nearly everything significant. Here the labels
of whole prompts are exchanged.
"""

from dataclasses import dataclass

import numpy as np

from dist_moe.risk.contrast import Estimate, risk_diffs
from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.estimates import risk_diff
from dist_moe.risk.labelings import labelings

TIE = 1e-12
"""Differences of rates that are equal by arithmetic may differ by rounding; they count as ties, against the finding."""


@dataclass(frozen=True, slots=True)
class PermutationTest:
    """One-sided: does the unsafe arm use the expert more?"""

    p_LE: np.ndarray
    """float64 [L, E]: p of each expert alone."""
    family_p_LE: np.ndarray
    """Adjusted for all L * E experts (Westfall, Young 1993, single-step max-T): the chance, if labels mean nothing,
    that any expert of the batch differs as much."""
    q_LE: np.ndarray
    """Benjamini, Hochberg 1995: the least false discovery rate at which the expert is called."""
    smallest_p: float
    """The least p that so many labelings can give, however large the effect."""


def permutation_test(
    counts: RoutingCounts,
    unsafe_P: np.ndarray,
    strata_P: np.ndarray,
    *,
    num_permutations: int,
    estimate: Estimate,
    generator: np.random.Generator,
) -> PermutationTest:
    """Compare risk_diff with what it is under other labelings of the same prompts (see `labelings`).

    p = #{>= observed} / N over all N labelings where they can be listed, else (1 + #{>= observed}) / (1 + N) over N
    drawn ones (Phipson, Smyth 2010), which is never 0.
    """
    labels_NP, exact = labelings(unsafe_P, strata_P, num_permutations, generator)
    observed_X = risk_diff(counts, unsafe_P, estimate).ravel() - TIE
    reached_X = np.empty(observed_X.size, np.int64)
    largest_N = np.full(len(labels_NP), -np.inf)
    for columns, diff_NX in risk_diffs(labels_NP, ~labels_NP, counts, estimate):
        reached_X[columns] = (diff_NX >= observed_X[columns]).sum(axis=0)
        np.maximum(largest_N, diff_NX.max(axis=1), out=largest_N)
    family_X = len(largest_N) - np.searchsorted(np.sort(largest_N), observed_X)
    own = 0 if exact else 1
    p_X, family_p_X = ((reached + own) / (len(labels_NP) + own) for reached in (reached_X, family_X))
    shape = counts.counts_PLE.shape[1:]
    return PermutationTest(
        p_X.reshape(shape),
        family_p_X.reshape(shape),
        benjamini_hochberg(p_X).reshape(shape),
        1 / (len(labels_NP) + own),
    )


def benjamini_hochberg(p_X: np.ndarray) -> np.ndarray:
    """q-values, float64 [X]: the least of p_(j) X / j over all j from the p's own rank on."""
    order = np.argsort(p_X, kind="stable")
    scaled_X = p_X[order] * p_X.size / np.arange(1, p_X.size + 1)
    q_X = np.empty_like(p_X)
    q_X[order] = np.minimum.accumulate(scaled_X[::-1])[::-1]
    return np.minimum(q_X, 1.0)
