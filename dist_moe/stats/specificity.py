"""Compares masks within and between categories, and computes how the union grows with the number of batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dist_moe.stats.overlap import jaccard_matrix


@dataclass(frozen=True, slots=True)
class Specificity:
    """Mean Jaccard index over pairs of batches, within a category and between categories."""

    within: float
    between: float
    p: float
    """One-sided p-value: fraction of shuffles of the batches' categories in which within - between is as large."""
    num_batches: int
    """Batches that were compared: all, or a sample of them."""


MOST_BATCHES = 1000
"""Of more batches, so many are drawn and compared, as the number of pairs grows with the square."""


def category_specificity(
    masks_BLE: np.ndarray, categories: Sequence[str], num_permutations: int, generator: np.random.Generator
) -> Specificity | None:
    """Compare overlap within categories with overlap between categories.

    p = (1 + #{>= observed}) / (1 + N). Batches share no prompt, so their masks are exchangeable if categories do not
    matter; those of a sample are, too, and its means are those of all batches but for chance. None unless there are
    pairs of both kinds.
    """
    if len(categories) > MOST_BATCHES:
        drawn = np.sort(generator.choice(len(categories), MOST_BATCHES, replace=False))
        masks_BLE, categories = masks_BLE[drawn], [categories[batch] for batch in drawn.tolist()]
    first, second = np.triu_indices(len(categories), k=1)
    jaccard_BB = jaccard_matrix(masks_BLE)
    jaccard_Q = jaccard_BB[first, second]
    category_B = np.unique(list(categories), return_inverse=True)[1]
    same_Q = category_B[first] == category_B[second]
    if same_Q.all() or not same_Q.any():
        return None
    within, between = float(jaccard_Q[same_Q].mean()), float(jaccard_Q[~same_Q].mean())
    one_W, other_W, total = first[same_Q], second[same_Q], jaccard_Q.sum()  # shuffles keep the number of pairs within
    reached = 0
    for _ in range(num_permutations):
        batch_B = np.argsort(generator.permutation(len(categories)))  # the batch that gets each one's category
        sum_within = jaccard_BB.ravel()[batch_B[one_W] * len(categories) + batch_B[other_W]].sum()
        shuffled = sum_within / len(one_W) - (total - sum_within) / (len(first) - len(one_W))
        reached += shuffled >= within - between - 1e-12
    return Specificity(within, between, (1 + reached) / (1 + num_permutations), len(categories))


@dataclass(frozen=True, slots=True)
class UnionGrowth:
    """Size of the union of n masks, over all choices of n of the B batches; element n - 1 of each array."""

    mean_B: np.ndarray
    """float64 [B]."""
    deviation_B: np.ndarray
    """float64 [B]: the standard deviation; 0 for all batches together."""


EXPERTS_AT_ONCE = 1024
SMALLEST = 1e-200
"""Chances below this count as 0."""


def union_growth(masks_BLE: np.ndarray) -> UnionGrowth:
    """Number of different experts in the masks of 1, 2, ... B batches together, exactly.

    n batches drawn without replacement miss an expert that is in m of the B masks with probability C(B - m, n) / C(B,
    n) (hypergeometric; rarefaction, Hurlbert 1971). They miss two experts with the probability of one that is in every
    mask with at least one of the two. Mean and variance are sums of these probabilities.
    """
    num_batches = len(masks_BLE)
    of_expert_BX = masks_BLE.reshape(num_batches, -1)
    of_expert_BX = of_expert_BX[:, of_expert_BX.any(axis=0)].astype(np.float32)  # exact to 2^24 batches
    masks_X = of_expert_BX.sum(axis=0).astype(np.int64)
    num_experts_M = np.bincount(masks_X, minlength=num_batches + 1)
    num_pairs_M = np.zeros(num_batches + 1, np.int64)
    for start in range(0, len(masks_X), EXPERTS_AT_ONCE):
        some = slice(start, start + EXPERTS_AT_ONCE)
        both_YX = (of_expert_BX[:, some].T @ of_expert_BX).astype(np.int64)
        num_pairs_M += np.bincount((masks_X[some, None] + masks_X - both_YX).ravel(), minlength=num_batches + 1)
    missing_B, both_missing_B = np.zeros(num_batches), np.zeros(num_batches)
    present_M = np.flatnonzero(num_pairs_M)  # with an expert itself as a pair, these are all numbers of masks
    missed_M = np.ones(len(present_M))
    for drawn in range(num_batches):
        # The chance that the next batch misses them too; a product of these, and 0 from n = B - m + 1 on.
        missed_M *= np.maximum(num_batches - present_M - drawn, 0) / (num_batches - drawn)
        left = np.count_nonzero(missed_M > SMALLEST)  # less for a larger m, so the others are the last ones
        present_M, missed_M = present_M[:left], missed_M[:left]
        missing_B[drawn] = num_experts_M[present_M] @ missed_M
        both_missing_B[drawn] = num_pairs_M[present_M] @ missed_M
    variance_B = both_missing_B - missing_B**2
    return UnionGrowth(len(masks_X) - missing_B, np.sqrt(np.maximum(variance_B, 0.0)))
