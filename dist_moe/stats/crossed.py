"""The mean of a measure over runs and prompts, when each run (a seed) is scored on the same prompts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import numpy as np
from scipy.special import stdtrit

from dist_moe.stats.proportions import LEVEL, paired_difference, wilson


@dataclass(frozen=True, slots=True)
class Mean:
    """With a confidence interval that holds for other seeds and other prompts like these."""

    value: float
    low: float
    high: float
    num_prompts: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval is on one side of 0, which is what a difference must be to name a winner."""
        return self.low > 0 or self.high < 0


def crossed_mean(values_SP: np.ndarray, *, are_rates: bool = False, least: float = -inf) -> Mean:
    """Mean of float [S, P]: S runs, each on the same P prompts, both drawn from many.

    The two-way random effects model (Searle, Casella, McCulloch 1992, chapter 4): y_sp = m + a_s + b_p + e_sp, so that
    Var(mean) = (MS_s + MS_p - MS_e) / (S P) by the mean squares, with Satterthwaite's degrees of freedom. Sampling may
    bring the estimate below what seeds or prompts alone say; then that is taken instead. One run says nothing of other
    seeds: the interval is then of prompts alone. Where all values are the same there is no variance to go by; for
    `are_rates`, values in [0, 1], the interval is never narrower than Wilson's on P prompts.

    Student's interval is symmetric, so it may reach below `least`, which no value can be below. It is then cut there:
    no mean that can be is lost, so it covers the true one exactly as often.

    Raises:
        ValueError: there are fewer than two prompts.
    """
    num_runs, num_prompts = values_SP.shape
    if num_prompts < 2:
        raise ValueError(f"expected two prompts or more, got {num_prompts}")
    mean = float(values_SP.mean())
    by_run_S, by_prompt_P = values_SP.mean(axis=1), values_SP.mean(axis=0)
    ms_prompts = num_runs * by_prompt_P.var(ddof=1)
    sources = [(ms_prompts, num_prompts - 1)]
    if num_runs > 1:
        rest_SP = values_SP - by_run_S[:, None] - by_prompt_P + mean
        df_rest = (num_runs - 1) * (num_prompts - 1)
        sources = [(num_prompts * by_run_S.var(ddof=1), num_runs - 1), (ms_prompts, num_prompts - 1)]
        both = sources[0][0] + sources[1][0] - (rest_SP**2).sum() / df_rest
        squares = sum(square**2 / df for square, df in [*sources, ((rest_SP**2).sum() / df_rest, df_rest)])
        if squares > 0:
            sources.append((both, both**2 / squares))
    square, df = max(sources)
    half = float(stdtrit(df, 0.5 + LEVEL / 2) * np.sqrt(square / values_SP.size)) if square > 0 else 0.0
    low, high = max(min(least, mean), mean - half), mean + half
    if not are_rates:
        return Mean(mean, low, high, num_prompts)
    return _at_least(Mean(mean, low, high, num_prompts), wilson(mean * num_prompts, num_prompts), 0.0)


def crossed_difference(values_SP: np.ndarray, reference_SP: np.ndarray, *, are_rates: bool = False) -> Mean:
    """Mean of values - reference, paired by run and prompt, as `crossed_mean` has it.

    For `are_rates` the interval is never narrower than Newcombe's of paired shares on P prompts.
    """
    found = crossed_mean(values_SP - reference_SP)
    if not are_rates:
        return found
    pairs = ((reference_SP, values_SP), (reference_SP, 1 - values_SP), (1 - reference_SP, values_SP))
    both, only_first, only_second = (float((a * b).mean(axis=0).sum()) for a, b in pairs)
    neither = values_SP.shape[1] - both - only_first - only_second
    return _at_least(found, paired_difference(both, only_first, only_second, neither), -1.0)


def _at_least(found: Mean, ends: tuple[float, float], least: float) -> Mean:
    """The interval with these ends inside it, and within [least, 1]."""
    return replace(found, low=max(least, min(found.low, ends[0])), high=min(1.0, max(found.high, ends[1])))
