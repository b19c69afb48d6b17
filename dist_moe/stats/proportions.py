"""Shares of yes among independent observations: intervals and tests in closed form.

Sources: Wilson, JASA 22 (1927) 209; Newcombe, Statistics in Medicine 17 (1998) 857 (single shares) and 2635 (paired
ones, his method 10); McNemar, Psychometrika 12 (1947) 153, in its exact form.
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

LEVEL = 0.95
"""Of every interval: two-sided."""
Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)


def wilson(successes: float, number: float) -> tuple[float, float]:
    """The score interval of a share, `successes` of `number` > 0; never empty, also for none and for all."""
    share = successes / number
    centre = share + Z**2 / (2 * number)
    half = Z * sqrt(share * (1 - share) / number + Z**2 / (4 * number**2))
    scale = 1 + Z**2 / number
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def paired_difference(both: float, only_first: float, only_second: float, neither: float) -> tuple[float, float]:
    """The interval of second share - first share, of pairs counted by which of the two is a yes.

    Newcombe's method 10: the two Wilson intervals, joined by the correlation of the pairs. Fractions of pairs may be
    given. At least one pair.
    """
    number = both + only_first + only_second + neither
    first, second = (both + only_first) / number, (both + only_second) / number
    low_first, high_first = wilson(first * number, number)
    low_second, high_second = wilson(second * number, number)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    cross = both * neither - only_first * only_second
    cross = max(cross - number / 2, 0) if cross > 0 else cross
    phi = cross / sqrt(margins) if margins > 0 else 0.0
    down, up = second - low_second, high_second - second
    below, above = first - low_first, high_first - first
    difference = second - first
    low = difference - sqrt(max(0.0, down**2 - 2 * phi * down * above + above**2))
    high = difference + sqrt(max(0.0, up**2 - 2 * phi * up * below + below**2))
    return max(-1.0, low), min(1.0, high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided p-value of "the two shares are the same", from the pairs in which they differ; exact.

    Under it each such pair is one or the other with probability 1/2. 1 where no pair differs.
    """
    number, fewer = only_first + only_second, min(only_first, only_second)
    tail = ways = 1  # whole numbers: number over k, from the one before
    for k in range(fewer):
        ways = ways * (number - k) // (k + 1)
        tail += ways
    return min(1.0, 2 * tail / 2**number)
