"""How far a median can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from statistics import median

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Spread:
    """Of some values: smallest, median and largest, and an interval of the median of all values like them."""

    smallest: float
    low: float
    median: float
    high: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        ordered, rank = sorted(values), interval_rank(len(values))
        return cls(ordered[0], ordered[rank - 1], median(ordered), ordered[-rank], ordered[-1])

    def says_of(self, value: float) -> str:
        """Where another run's median lies in this spread."""
        if self.low <= value <= self.high:
            return "in the interval"
        if self.smallest <= value <= self.largest:
            return "in the rounds' range"
        return "OUTSIDE"


def interval_rank(number: int) -> int:
    """r: the r-th smallest and the r-th largest of so many values enclose the median with `CONFIDENCE` at least; 1 if
    no r does. The sign test's interval: it assumes no distribution, only rounds that do not depend on each other."""
    ranks = [r for r in range(1, (number + 1) // 2 + 1) if coverage(number, r) >= CONFIDENCE]
    return max(ranks, default=1)


def coverage(number: int, rank: int) -> float:
    """The probability with which the interval encloses the median."""
    return 1 - 2 * sum(comb(number, k) for k in range(rank)) / 2**number


def describe_interval(number: int) -> str:
    """One sentence about the interval of a run of so many rounds."""
    rank = interval_rank(number)
    return (
        f"Intervals are of the median, by the sign test: of {number} rounds the values number {rank} and "
        f"{number + 1 - rank}, {coverage(number, rank):.1%}."
    )
