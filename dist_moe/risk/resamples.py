"""Other draws of a batch's prompts: bootstrap samples and half-samples. Pairs are drawn as wholes."""

from __future__ import annotations

import numpy as np

from dist_moe.risk.labelings import units_of


def bootstrap_weights(
    unsafe_P: np.ndarray, strata_P: np.ndarray, num_resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """int64 [N, P]: how often each prompt is drawn when pairs, and each arm's other prompts, are resampled with
    replacement, each kind to its own number."""
    weights_NP = np.zeros((num_resamples, len(unsafe_P)), np.int64)
    for units_UM in units_of(unsafe_P, strata_P):
        if number := len(units_UM):
            times_NU = generator.multinomial(number, np.full(number, 1 / number), size=num_resamples)
            weights_NP[:, units_UM] = times_NU[:, :, None]
    return weights_NP


def half_samples(
    unsafe_P: np.ndarray, strata_P: np.ndarray, num_resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """bool [N, P]: half of the pairs, and half of each arm's other prompts, drawn without replacement.

    Rounded down, but an arm that were left empty by that keeps its pair or, without one, its prompt.
    """
    chosen_NP = np.zeros((num_resamples, len(unsafe_P)), np.bool_)
    units = units_of(unsafe_P, strata_P)
    *halves, pairs = [len(units_UM) // 2 for units_UM in units]
    if len(units[-1]) == 1 and 0 in halves:
        pairs = 1
    elif not pairs:
        halves = [max(1, half) for half in halves]
    for units_UM, half in zip(units, (*halves, pairs), strict=True):
        first_NU = np.broadcast_to(np.arange(len(units_UM)) < half, (num_resamples, len(units_UM)))
        chosen_NP[:, units_UM] = generator.permuted(first_NU, axis=1)[:, :, None]
    return chosen_NP
