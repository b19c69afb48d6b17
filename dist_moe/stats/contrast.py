"""Computes the difference between the arms for many weightings of the same prompts at once.

Permuted labels, bootstrap samples and half-samples are all weights on prompts, so each is a matrix product with the
counts, for all experts together. With whole-number weights, the products of `micro` are sums of integers, and exact
whatever the order in which a linear algebra library adds them. So an arm's sum may also be that of all prompts less the
other arm's.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from dist_moe.stats.counts import RoutingCounts

Estimate = Literal["micro", "macro"]

VALUES_AT_ONCE = 1 << 16
"""Values in memory at a time: as many as a core's own cache holds, since each is read several times."""


def risk_diffs(
    unsafe_NP: np.ndarray, safe_NP: np.ndarray, counts: RoutingCounts, estimate: Estimate
) -> Iterator[tuple[slice, np.ndarray]]:
    """risk_diff of all experts under N weightings, some experts at a time to bound memory.

    micro: Σ u_p c_p / Σ u_p t_p - Σ s_p c_p / Σ s_p t_p, tokens pooled (a ratio of sums: long prompts weigh more).
    macro: Σ u_p (c_p / t_p) / Σ u_p - the same for s, the mean of the prompts' own rates.

    Args:
        unsafe_NP: weights u >= 0 of the P prompts in the unsafe arm, float64 or bool [N, P]; no row is all 0.
        safe_NP: weights s in the safe arm.
        counts: c and t of P prompts, each with a counted token.

    Yields:
        A slice of the flattened experts, X of L * E, and float64 [N, X].
    """
    assert (counts.tokens_P > 0).all()
    tokens_P = counts.tokens_P.astype(np.float64)
    flat_PX = counts.counts_PLE.reshape(counts.num_prompts, -1)
    per_prompt_P = tokens_P if estimate == "micro" else np.ones_like(tokens_P)
    weights = [weight_NP.astype(np.float64) for weight_NP in (unsafe_NP, safe_NP)]
    totals = [weight_NP @ per_prompt_P for weight_NP in weights]
    assert all((total_N > 0).all() for total_N in totals)
    arms = [weight_NP.any(axis=0) for weight_NP in weights]
    all_P = weights[0][0] + weights[1][0]
    relabelled = estimate == "micro" and (weights[0] + weights[1] == all_P).all()  # only the labels change
    unsafe_NU, safe_NS = (weight_NP[:, arm_P] for weight_NP, arm_P in zip(weights, arms, strict=True))
    step = max(1, VALUES_AT_ONCE // len(unsafe_NP))
    for start in range(0, flat_PX.shape[1], step):
        columns = slice(start, min(start + step, flat_PX.shape[1]))
        values_PX = flat_PX[:, columns].astype(np.float64)
        if estimate == "macro":
            values_PX /= tokens_P[:, None]
        # The values of an expert lie side by side: what is reduced over experts is then done for whole columns at once.
        unsafe_NX = (values_PX[arms[0]].T @ unsafe_NU.T).T
        safe_NX = all_P @ values_PX - unsafe_NX if relabelled else (values_PX[arms[1]].T @ safe_NS.T).T
        unsafe_NX /= totals[0][:, None]
        safe_NX /= totals[1][:, None]
        unsafe_NX -= safe_NX
        yield columns, unsafe_NX


def all_risk_diffs(unsafe_NP: np.ndarray, safe_NP: np.ndarray, counts: RoutingCounts, estimate: Estimate) -> np.ndarray:
    """`risk_diffs` in one array, float64 [N, L, E]: N * L * E values in memory."""
    all_NX = np.empty((len(unsafe_NP), counts.counts_PLE[0].size))
    for columns, diff_NX in risk_diffs(unsafe_NP, safe_NP, counts, estimate):
        all_NX[:, columns] = diff_NX
    return all_NX.reshape(-1, *counts.counts_PLE.shape[1:])
