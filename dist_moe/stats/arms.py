"""Tests whether safe and unsafe prompts differ in something other than risk: in length, or in their share of
template tokens."""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc, sqrt

import numpy as np

from dist_moe.stats.design import Design
from dist_moe.stats.labelings import labelings

LABELINGS = 999
MOST_WEIGHTS = 1 << 24
"""Limit on labelings times rows; above it, p comes from a normal approximation."""
TIE = 1e-9


@dataclass(frozen=True, slots=True)
class ArmDifference:
    """A ratio of sums in each arm, and a test of whether the two differ."""

    safe: float
    unsafe: float
    p: float
    """Two-sided p-value by permuted labels."""


def arm_difference(
    value_P: np.ndarray, weight_P: np.ndarray, unsafe_P: np.ndarray, design: Design, generator: np.random.Generator
) -> ArmDifference:
    """Compare Σ value / Σ weight between the arms (with weights of 1: their means).

    The p-value is by exchange of labels (`dist_moe.stats.labelings`), as for risk_diff: exact if there are few
    labelings, else from LABELINGS random ones; with very many rows, from a normal approximation.

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
    """Normal approximation: mean and variance over labelings of the unsafe rows' sum of value - rate weight (Cochran
    1977, ch. 2)."""
    rest_P = value_P - value_P.sum() / weight_P.sum() * weight_P
    above, variance = 0.0, 0.0
    for rows_KR in design.strata():
        rest_K, unsafe_K = rest_P[rows_KR].sum(axis=1), unsafe_P[rows_KR[:, 0]]
        size, number = len(rest_K), int(unsafe_K.sum())
        if 0 < number < size:
            above += float(rest_K[unsafe_K].sum() - number * rest_K.mean())
            variance += float(number * (size - number) / (size * (size - 1)) * ((rest_K - rest_K.mean()) ** 2).sum())
    return erfc(abs(above) / sqrt(2 * variance)) if variance > TIE else 1.0
