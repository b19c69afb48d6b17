"""Do batches of one category share more experts than batches of different ones, and how fast does the union grow?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dist_moe.stats.overlap import jaccard_matrix


@dataclass(frozen=True, slots=True)
class Specificity:
    """Mean Jaccard index of pairs of batches."""

    within: float
    between: float
    p: float
    """One-sided: the share of shuffles of the batches' categories in which within - between is as large."""


def category_specificity(
    masks_BLE: np.ndarray, categories: Sequence[str], num_permutations: int, generator: np.random.Generator
) -> Specificity | None:
    """Compare overlap within categories with overlap between them.

    p = (1 + #{>= observed}) / (1 + N). Batches share no prompt, so that their masks are exchangeable if categories mean
    nothing. None without a pair of each kind.
    """
    first, second = np.triu_indices(len(categories), k=1)
    jaccard_Q = jaccard_matrix(masks_BLE)[first, second]
    category_B = np.unique(list(categories), return_inverse=True)[1]
    same_Q = category_B[first] == category_B[second]
    if same_Q.all() or not same_Q.any():
        return None
    within, between = _means(jaccard_Q, same_Q)
    reached = 0
    for _ in range(num_permutations):
        shuffled_B = generator.permutation(category_B)
        means = _means(jaccard_Q, shuffled_B[first] == shuffled_B[second])
        reached += means[0] - means[1] >= within - between - 1e-12
    return Specificity(within, between, (1 + reached) / (1 + num_permutations))


def _means(jaccard_Q: np.ndarray, same_Q: np.ndarray) -> tuple[float, float]:
    return float(jaccard_Q[same_Q].mean()), float(jaccard_Q[~same_Q].mean())


@dataclass(frozen=True, slots=True)
class UnionGrowth:
    """Size of the union of the first n batches over random orders; element n - 1 of each array."""

    mean_B: np.ndarray
    low_B: np.ndarray
    """2.5 % quantile over orders."""
    high_B: np.ndarray
    """97.5 % quantile."""


def union_growth(masks_BLE: np.ndarray, num_orders: int, generator: np.random.Generator) -> UnionGrowth:
    """How many different experts the masks of 1, 2, ... B batches have together; `num_orders` random orders."""
    num_batches = len(masks_BLE)
    batch_of, expert_of = np.nonzero(masks_BLE.reshape(num_batches, -1))
    experts, expert_of = np.unique(expert_of, return_inverse=True)
    sizes_NB = np.empty((num_orders, num_batches), np.int64)
    for sizes_B in sizes_NB:
        first_X = np.full(len(experts), num_batches)
        np.minimum.at(first_X, expert_of, generator.permutation(num_batches)[batch_of])
        sizes_B[:] = np.cumsum(np.bincount(first_X, minlength=num_batches))
    return UnionGrowth(sizes_NB.mean(axis=0), *np.quantile(sizes_NB, [0.025, 0.975], axis=0))
