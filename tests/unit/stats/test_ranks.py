"""Spearman's rank correlation against counting, pair by pair, which of two is larger."""

import numpy as np
import pytest

from dist_moe.stats.ranks import rank_correlation


def ranks(values):
    """Mean rank of each value, from 1: how many are below it, and half of its equals."""
    return [
        1 + sum(other < each for other in values) + (sum(other == each for other in values) - 1) / 2 for each in values
    ]


@pytest.mark.parametrize("num_values", [3, 8, 40])
def test_it_is_the_correlation_of_mean_ranks(num_values):
    draw = np.random.default_rng(num_values)
    one, other = draw.integers(0, 5, num_values), draw.normal(size=num_values)
    assert rank_correlation(one, other) == pytest.approx(np.corrcoef(ranks(one), ranks(other))[0, 1])


def test_of_one_value_there_is_none():
    assert rank_correlation(np.ones(4), np.arange(4)) is None
    assert rank_correlation(np.arange(4), 10.0 ** np.arange(4)) == pytest.approx(1)
