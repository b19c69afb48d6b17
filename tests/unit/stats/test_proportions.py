"""Shares: the textbook's numbers, and what enumeration says."""

from itertools import product
from math import comb, factorial

import numpy as np
import pytest

from dist_moe.stats.proportions import mcnemar, paired_difference, wilson

NEWCOMBE = {(81, 263): (0.2553, 0.3662), (15, 148): (0.0624, 0.1605), (0, 20): (0.0, 0.1611), (1, 29): (0.0061, 0.1718)}
"""Table I of Newcombe (1998), method 3."""


@pytest.mark.parametrize("counts", NEWCOMBE)
def test_wilson_has_the_published_numbers(counts):
    assert wilson(*counts) == pytest.approx(NEWCOMBE[counts], abs=6e-5)


def test_wilson_is_symmetric_and_never_a_point():
    for number in (1, 2, 7, 50):
        for successes in range(number + 1):
            low, high = wilson(successes, number)
            assert 0 <= low < high <= 1
            assert wilson(number - successes, number) == pytest.approx((1 - high, 1 - low))


def test_the_ends_of_wilson_are_where_the_score_test_just_rejects():
    for end in wilson(7, 30):
        assert abs(7 / 30 - end) / np.sqrt(end * (1 - end) / 30) == pytest.approx(1.959964, abs=1e-5)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (0, 5), (3, 9), (8, 8), (12, 2)])
def test_mcnemar_is_the_share_of_all_outcomes_that_are_as_unlikely(first, second):
    """Every assignment of the pairs that differ is written out."""
    number = first + second
    distance = abs(first - second)
    outcomes = [sum(signs) for signs in product((-1, 1), repeat=number)]
    expected = sum(abs(outcome) >= distance for outcome in outcomes) / len(outcomes)
    assert mcnemar(first, second) == pytest.approx(expected)


def test_mcnemar_of_many_pairs():
    assert mcnemar(0, 2000) == 2.0**-1999 if 2.0**-1999 else mcnemar(0, 2000) < 1e-300
    assert mcnemar(480, 520) == pytest.approx(0.217, abs=2e-3)  # a normal distribution with correction says 0.2174


@pytest.mark.parametrize(("first", "second"), [(3, 3), (0, 9), (40, 61), (700, 800)])
def test_mcnemar_has_the_bits_of_its_definition(first, second):
    number = first + second
    tail = sum(comb(number, k) for k in range(min(first, second) + 1))
    assert mcnemar(first, second) == min(1.0, 2 * tail / 2**number)


def test_mcnemar_of_the_pairs_of_ten_thousand_batches():
    assert 0 < mcnemar(19_800, 20_200) < 0.05  # took minutes when each number of ways was counted from the start


def test_a_paired_difference_turned_around_is_its_negative():
    low, high = paired_difference(20, 3, 11, 6)
    assert low < 8 / 40 < high
    assert paired_difference(20, 11, 3, 6) == pytest.approx((-high, -low))
    assert paired_difference(0, 0, 20, 0)[0] < 1 == paired_difference(0, 0, 20, 0)[1]
    low, high = paired_difference(0, 0, 0, 20)
    assert low < 0 < high


def test_a_paired_difference_covers_the_truth_as_often_as_it_says():
    """Of all tables of 18 pairs, each with its probability: at least .93, where the nominal share is .95."""
    number = 18
    for chances in ((0.3, 0.1, 0.3, 0.3), (0.55, 0.05, 0.15, 0.25), (0.1, 0.1, 0.1, 0.7), (0.02, 0.02, 0.9, 0.06)):
        covered = 0.0
        for a, b, c in product(range(number + 1), repeat=3):
            if (d := number - a - b - c) < 0:
                continue
            ways = factorial(number) // (factorial(a) * factorial(b) * factorial(c) * factorial(d))
            low, high = paired_difference(a, b, c, d)
            chance = ways * np.prod(np.power(chances, (a, b, c, d)))
            covered += chance * (low <= chances[2] - chances[1] <= high)
        assert covered > 0.93, (chances, covered)
