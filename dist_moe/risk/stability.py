"""Would other prompts of the same kind have selected the same experts?"""

import numpy as np

from dist_moe.risk.contrast import Estimate, risk_diffs
from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.select import selected


def half_samples(unsafe_P: np.ndarray, num_resamples: int, generator: np.random.Generator) -> np.ndarray:
    """bool [N, P]: half of each arm's prompts (rounded down, at least one), drawn without replacement."""
    chosen_NP = np.zeros((num_resamples, len(unsafe_P)), np.bool_)
    for arm_P in (unsafe_P, ~unsafe_P):
        size = int(arm_P.sum())
        first_N = np.broadcast_to(np.arange(size) < max(1, size // 2), (num_resamples, size))
        chosen_NP[:, arm_P] = generator.permuted(first_N, axis=1)
    return chosen_NP


def selection_frequency(
    counts: RoutingCounts,
    unsafe_P: np.ndarray,
    *,
    threshold: float,
    top_k: int,
    estimate: Estimate,
    num_resamples: int,
    generator: np.random.Generator,
) -> np.ndarray:
    """Share of half-samples in which sorting, threshold and top_k select each expert, float64 [L, E].

    Stability selection (Meinshausen, Bühlmann 2010). A half-sample is noisier than the batch, so more experts pass the
    threshold in it by chance; only a frequency near 1 says much.
    """
    chosen_NP = half_samples(unsafe_P, num_resamples, generator)
    parts = risk_diffs(chosen_NP & unsafe_P, chosen_NP & ~unsafe_P, counts, estimate)
    above_NX = np.concatenate([np.where(diff_NX > threshold, diff_NX, -np.inf) for _, diff_NX in parts], axis=1)
    times_X = np.zeros(above_NX.shape[1], np.int64)
    for diff_X in above_NX:
        times_X += selected(diff_X, threshold, top_k)
    return (times_X / num_resamples).reshape(counts.counts_PLE.shape[1:])
