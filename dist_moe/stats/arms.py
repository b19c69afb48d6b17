"""Do the arms differ in something that is no risk: in how many tokens a row counts, or in whose they are?"""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np

from dist_moe.stats.design import Design
from dist_moe.stats.labelings import labelings

LABELINGS = 999
MOST_WEIGHTS = 1 << 24
"""Labelings times rows; with fewer than LABELINGS by this, p is that of a normal distribution."""
TIE = 1e-9


@dataclass(frozen=True, slots=True)
class ArmDifference:
    """A ratio of sums in each arm, and whether the two differ more than permuted labels make them."""

    safe: float
    unsafe: float
    p: float
    """Two-sided: how often the difference is as large if labels mean nothing."""


def arm_difference(
    value_P: np.ndarray, weight_P: np.ndarray, unsafe_P: np.ndarray, design: Design, generator: np.random.Generator
) -> ArmDifference:
    """Compare Σ value / Σ weight of the arms; with weights of 1 their means.

    p is of exchanged labels (`dist_moe.stats.labelings`), as for risk_diff: exact where these are few, else from
    LABELINGS drawn ones. Of very many rows, from the normal distribution that the difference then has.

    Args:
        value_P: float64 [P].
        weight_P: float64 [P], above 0.
        unsafe_P: bool [P], both labels.
        design: of these rows.
        generator: draws labelings.
    """
    safe, unsafe = (value_P[arm_P].sum() / weight_P[arm_P].sum() for arm_P in (~unsafe_P, unsafe_P))
    if len(unsafe_P) * LABELINGS > MOST_WEIGHTS:
        return ArmDifference(safe, unsafe, _normal_p(value_P, weight_P, unsafe_P, design))
    labels_NP, exact = labelings(unsafe_P, design, LABELINGS, generator)
    reached = 0
    for some_NP in np.array_split(labels_NP, 1 + (labels_NP.size >> 15)):  # as products, they take 8 times the memory
        unsafe_N, safe_N = ((arm_NP @ value_P) / (arm_NP @ weight_P) for arm_NP in (some_NP, ~some_NP))
        reached += int((np.abs(unsafe_N - safe_N) >= abs(unsafe - safe) - TIE).sum())
    own = 0 if exact else 1
    return ArmDifference(safe, unsafe, (reached + own) / (len(labels_NP) + own))


def _normal_p(value_P: np.ndarray, weight_P: np.ndarray, unsafe_P: np.ndarray, design: Design) -> float:
    """Of the unsafe rows' sum of value - rate weight, by its mean and variance over labelings (Cochran 1977, ch. 2)."""
    rest_P = value_P - value_P.sum() / weight_P.sum() * weight_P
    above, variance = 0.0, 0.0
    for rows_KR in design.strata():
        rest_K, unsafe_K = rest_P[rows_KR].sum(axis=1), unsafe_P[rows_KR[:, 0]]
        size, number = len(rest_K), int(unsafe_K.sum())
        if 0 < number < size:
            above += float(rest_K[unsafe_K].sum() - number * rest_K.mean())
            variance += float(number * (size - number) / (size * (size - 1)) * ((rest_K - rest_K.mean()) ** 2).sum())
    return erfc(abs(above) / sqrt(2 * variance)) if variance > TIE else 1.0
