"""10,000 permutations of a batch's labels, all experts at once, against a loop over them as one would write it."""

from __future__ import annotations

import numpy as np
import torch

from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.design import Kinship
from dist_moe.stats.permutation import PermutationTest, permutation_test
from tools.bench.setup import Options
from tools.bench.timing import Comparison, measure

PROMPTS, LAYERS, EXPERTS, TOP_K = 16, 48, 128, 8
TIE = 1e-12


def bench_permutation(options: Options, launch: int) -> list[Comparison]:
    """Both draw the same labelings, and must find the same family-wise p."""
    generator = np.random.default_rng(0)
    tokens_P = generator.integers(16, 64, PROMPTS)
    rates_PLE = generator.dirichlet(np.ones(EXPERTS), (PROMPTS, LAYERS))
    tokens_P11 = tokens_P[:, None, None]
    counts_PLE = np.minimum(TOP_K * tokens_P11 * rates_PLE, tokens_P11).astype(np.int64)
    counts = RoutingCounts(counts_PLE, tokens_P, TOP_K)
    unsafe_P = np.arange(PROMPTS) >= PROMPTS // 2
    number = options.permutations

    def ours(i: int) -> PermutationTest:
        return permutation_test(
            counts,
            unsafe_P,
            Kinship.none(np.zeros(PROMPTS, np.int64)).design(unsafe_P),
            num_permutations=number,
            estimate="micro",
            statistic="difference",
            generator=np.random.default_rng(i),
        )

    def loop(i: int) -> np.ndarray:
        flat_PX = counts.counts_PLE.reshape(PROMPTS, -1)

        def difference(labels_P: np.ndarray) -> np.ndarray:
            unsafe_X, safe_X = flat_PX[labels_P].sum(0), flat_PX[~labels_P].sum(0)
            return unsafe_X / tokens_P[labels_P].sum() - safe_X / tokens_P[~labels_P].sum()

        draw, observed_X = np.random.default_rng(i), difference(unsafe_P) - TIE
        reached_X = np.zeros(observed_X.size, np.int64)
        largest_N = np.empty(number)
        for n, labels_P in enumerate(draw.permuted(np.broadcast_to(unsafe_P, (number, PROMPTS)), axis=1)):
            difference_X = difference(labels_P)
            reached_X += difference_X >= observed_X
            largest_N[n] = difference_X.max()
        return (1 + (largest_N[:, None] >= np.sort(observed_X)[-8:]).sum(0)) / (1 + number)

    found = np.sort(ours(0).family_p_LE.ravel())[:8]
    assert np.allclose(found, np.sort(loop(0))), "another family-wise p"
    other = "a loop over them"
    times = measure(ours, {other: loop}, options.rounds(launch), torch.device("cpu"))
    return [Comparison(f"{number:,} permutations of {PROMPTS} x {LAYERS * EXPERTS:,}", other, *times[other])]
