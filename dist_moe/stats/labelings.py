"""Labelings: other assignments of the labels safe and unsafe to a batch's prompts, for permutation tests.

Blocks exchange labels only within their stratum, see `dist_moe.stats.design`. With pairs alone this is the sign-flip
test. All blocks of a stratum have the same size, so no labeling changes the sizes of the arms.
"""

from collections.abc import Iterator
from itertools import combinations, product
from math import comb, prod

import numpy as np

from dist_moe.stats.design import Design


def num_labelings(unsafe_P: np.ndarray, design: Design) -> int:
    """Number of labelings, including the real one: 2^n for n pairs."""
    return prod(comb(len(rows_KR), int(unsafe_P[rows_KR[:, 0]].sum())) for rows_KR in design.strata())


def labelings(
    unsafe_P: np.ndarray, design: Design, num: int, generator: np.random.Generator
) -> tuple[np.ndarray, bool]:
    """Labelings, bool [N, P], and whether they are all that exist.

    All of them, including the real one, if there are at most `num`; else `num` random ones, drawn independently.
    """
    exact = num_labelings(unsafe_P, design) <= num
    if exact:
        return np.array(list(_all(unsafe_P, design))), True
    labels_NP = np.broadcast_to(unsafe_P, (num, len(unsafe_P))).copy()
    for rows_KR in design.strata():
        labels_NK = generator.permuted(labels_NP[:, rows_KR[:, 0]], axis=1)
        labels_NP[:, rows_KR] = labels_NK[:, :, None]
    return labels_NP, False


def _all(unsafe_P: np.ndarray, design: Design) -> Iterator[np.ndarray]:
    choices = [list(combinations(rows_KR.tolist(), int(unsafe_P[rows_KR[:, 0]].sum()))) for rows_KR in design.strata()]
    for chosen in product(*choices):
        labels_P = np.zeros(len(unsafe_P), np.bool_)
        labels_P[[row for blocks in chosen for rows in blocks for row in rows]] = True
        yield labels_P
