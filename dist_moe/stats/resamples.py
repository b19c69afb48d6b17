"""Bootstrap samples and half-samples of a batch's prompts; units (prompts, or pairs of prompts) are drawn as a
whole."""

from __future__ import annotations

import numpy as np

from dist_moe.stats.design import Design


def bootstrap_weights(
    unsafe_P: np.ndarray, design: Design, num_resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """int64 [N, P]: how often each row is drawn. Units are resampled with replacement, separately for those of the
    safe arm, of the unsafe arm, and of both."""
    weights_NP = np.zeros((num_resamples, len(unsafe_P)), np.int64)
    for units in design.units(unsafe_P):
        if number := units.number:
            times_NU = generator.multinomial(number, np.full(number, 1 / number), size=num_resamples)
            weights_NP[:, units.rows_R] = times_NU[:, units.unit_R]
    return weights_NP


def half_samples(
    unsafe_P: np.ndarray, design: Design, num_resamples: int, generator: np.random.Generator
) -> np.ndarray:
    """bool [N, P]: half of the units of each arm, and half of those in both, drawn without replacement.

    Numbers are rounded down, but no arm becomes empty: it keeps a unit of both arms or, without one, one of its own.
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
