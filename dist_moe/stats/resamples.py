"""Other draws of a batch's prompts: bootstrap samples and half-samples. Units, prompts or pairs of them, are drawn as
wholes.
"""

from __future__ import annotations

import numpy as np

from dist_moe.stats.design import Design


def bootstrap_weights(
    unsafe_P: np.ndarray, design: Design, num_resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """int64 [N, P]: how often each row is drawn when units are resampled with replacement, those of each arm alone and
    those of both each to their own number."""
    weights_NP = np.zeros((num_resamples, len(unsafe_P)), np.int64)
    for units in design.units(unsafe_P):
        if number := units.number:
            times_NU = generator.multinomial(number, np.full(number, 1 / number), size=num_resamples)
            weights_NP[:, units.rows_R] = times_NU[:, units.unit_R]
    return weights_NP


def half_samples(
    unsafe_P: np.ndarray, design: Design, num_resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """bool [N, P]: half of the units of each arm alone, and half of those of both, drawn without replacement.

    Rounded down, but an arm that were left empty by that keeps its unit of both or, without one, its own.
    """
    chosen_NP = np.zeros((num_resamples, len(unsafe_P)), np.bool_)
    kinds = design.units(unsafe_P)
    *halves, both = [units.number // 2 for units in kinds]
    if kinds[-1].number == 1 and 0 in halves:
        both = 1
    elif not both:
        halves = [max(1, half) for half in halves]
    for units, half in zip(kinds, (*halves, both), strict=True):
        first_NU = np.broadcast_to(np.arange(units.number) < half, (num_resamples, units.number))
        chosen_NP[:, units.rows_R] = generator.permuted(first_NU, axis=1)[:, units.unit_R]
    return chosen_NP
