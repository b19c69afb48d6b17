"""Would other prompts of the same kind have selected the same experts?"""

import numpy as np

from dist_moe.risk.contrast import Estimate, all_risk_diffs
from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.resamples import half_samples
from dist_moe.risk.select import selected


def selection_frequency(
    counts: RoutingCounts,
    unsafe_P: np.ndarray,
    strata_P: np.ndarray,
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
    chosen_NP = half_samples(unsafe_P, strata_P, num_resamples, generator)
    times_LE = np.zeros(counts.counts_PLE.shape[1:], np.int64)
    for diff_LE in all_risk_diffs(chosen_NP & unsafe_P, chosen_NP & ~unsafe_P, counts, estimate):
        times_LE += selected(diff_LE, threshold, top_k)
    return times_LE / num_resamples
