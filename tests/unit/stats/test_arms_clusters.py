"""Arms that differ in length: the clusters of their rows are what is permuted, and p is at most what it should be."""

from itertools import combinations

import numpy as np
import pytest

from dist_moe.stats import arms
from dist_moe.stats.arms import arm_difference
from tests.unit.stats.prompts import half_unsafe, kin


def difference(value_P, weight_P, unsafe_P, clusters, pairs=None, seed=0):
    design = kin([0] * len(clusters) if pairs is None else pairs, clusters).design(unsafe_P)
    return arm_difference(
        np.array(value_P, float), np.array(weight_P, float), unsafe_P, design, np.random.default_rng(seed)
    )


def test_p_of_single_rows_against_a_loop_over_all_labelings():
    generator, unsafe_P = np.random.default_rng(0), half_unsafe(8)
    value_P, weight_P = generator.integers(1, 9, 8), generator.integers(9, 20, 8)

    def ratio(rows):
        return sum(value_P[row] for row in rows) / sum(weight_P[row] for row in rows)

    diffs = [
        abs(ratio(unsafe) - ratio([row for row in range(8) if row not in unsafe]))
        for unsafe in combinations(range(8), 4)
    ]
    observed = abs(ratio(range(4, 8)) - ratio(range(4)))
    found = difference(value_P, weight_P, unsafe_P, range(8))
    assert found.p == pytest.approx(np.mean([diff >= observed - 1e-12 for diff in diffs]))
    assert (found.unsafe, found.safe) == pytest.approx((ratio(range(4, 8)), ratio(range(4))))


def test_clusters_and_pairs_are_permuted_as_wholes():
    unsafe_P = half_unsafe(8)
    length_P, ones_P = np.where(unsafe_P, 20, 5), np.ones(8)
    assert difference(length_P, ones_P, unsafe_P, range(8)).p == 2 / 70
    assert difference(length_P, ones_P, unsafe_P, [0, 0, 1, 1, 2, 2, 3, 3]).p == 2 / 6
    assert difference(length_P, ones_P, unsafe_P, [0] * 4 + [1] * 4).p == 1
    assert difference(length_P, ones_P, unsafe_P, range(8), [1, 2, 3, 4, 1, 2, 3, 4]).p == 2 / 16


def test_equal_lengths_do_not_differ():
    assert difference(np.full(16, 7), np.ones(16), half_unsafe(16), range(16)).p == 1


@pytest.mark.parametrize("way", ["drawn", "normal"])
def test_level_holds_with_clusters_of_one_length_each(way, monkeypatch):
    """Rows of a prompt have one length: taken apart, one in three would be called different."""
    if way == "normal":
        monkeypatch.setattr(arms, "MOST_WEIGHTS", 0)
    monkeypatch.setattr(arms, "LABELINGS", 199)
    called = np.zeros(2)
    for seed in range(200):
        generator = np.random.default_rng([7, seed])
        clusters, unsafe_P = np.repeat(np.arange(24), 4), np.repeat(np.arange(24) >= 12, 4)
        length_P = np.repeat(generator.integers(5, 60, 24), 4)
        for index, of in enumerate((clusters, np.arange(96))):
            called[index] += difference(length_P, np.ones(96), unsafe_P, of, seed=seed).p <= 0.05
    share, apart = called / 200
    assert 0.01 < share < 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 200)
    assert apart > 0.2


def test_p_of_many_rows_is_that_of_few(monkeypatch):
    generator = np.random.default_rng(1)
    unsafe_P, length_P = half_unsafe(400), generator.integers(5, 60, 400) + 3 * half_unsafe(400)
    drawn = difference(length_P, np.ones(400), unsafe_P, range(400)).p
    monkeypatch.setattr(arms, "MOST_WEIGHTS", 0)
    assert difference(length_P, np.ones(400), unsafe_P, range(400)).p == pytest.approx(drawn, abs=0.03)
