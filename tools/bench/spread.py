"""How far a row's number can be trusted: where that of a second run is to be expected.

Rounds in one process share its layout of memory, its allocator's state and its minutes. So they depend on each other,
and however many there are, they do not tell how another process would do. A run therefore has several launches, each
a fresh process, and its number is the median of their medians. What varies between launches is in the spread of these
medians, and the interval is made of it: of two runs alike, whose launches' medians are normal in their logarithms, the
second's number lies in the first's interval with `CONFIDENCE`. It is a prediction interval (Hahn and Meeker,
"Statistical Intervals", 1991, chapter 4): number +- q s, with s the standard deviation of the launches' medians. For
means q would be Student's t times sqrt(2 / launches); for medians it is the quantile of the same quotient in runs
that are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import exp

import numpy as np

CONFIDENCE = 0.99
DRAWS = 100_000


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a run's ratios: the smallest and the largest of all rounds, the median of the launches' medians, and the
    interval in which a second run's is to be expected."""

    smallest: float
    low: float
    median: float
    high: float
    largest: float

    @classmethod
    def of(cls, ratios: Sequence[float], num_launches: int) -> Spread:
        """Ratios of two launches at least, one launch after the other and of each as many."""
        ratios_LR = np.reshape(ratios, (num_launches, -1))
        medians_L = np.median(ratios_LR, axis=1)
        middle = float(np.median(medians_L))
        factor = exp(quantile(num_launches) * float(np.log(medians_L).std(ddof=1)))
        return cls(float(ratios_LR.min()), middle / factor, middle, middle * factor, float(ratios_LR.max()))

    def says_of(self, value: float) -> str:
        """Where a second run's median lies."""
        return "in the interval" if self.low <= value <= self.high else "OUTSIDE"


@cache
def quantile(num_launches: int) -> float:
    """q: in `CONFIDENCE` of all pairs of runs their medians are at most q of the first's standard deviations apart."""
    first_NL, second_NL = np.random.default_rng(0).standard_normal((2, DRAWS, num_launches))
    apart_N = np.abs(np.median(second_NL, axis=1) - np.median(first_NL, axis=1)) / first_NL.std(axis=1, ddof=1)
    return float(np.quantile(apart_N, CONFIDENCE))


def describe_interval(num_launches: int, num_rounds: int) -> str:
    """One sentence about the intervals of a run."""
    return (
        f"A second run's median is to be expected in the interval, with {CONFIDENCE:.0%}: {quantile(num_launches):.2f} "
        f"standard deviations of the medians of {num_launches} launches, of {num_rounds} rounds each."
    )
