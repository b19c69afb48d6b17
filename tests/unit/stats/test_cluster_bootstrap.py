"""The bootstrap over prompts: against loops of plain NumPy that draw for themselves."""

import numpy as np
import pytest

from dist_moe.stats.cluster_bootstrap import area_under_curve, intervals, ratio
from dist_moe.stats.design import Kinship

GENERATOR = np.random.default_rng(5)
UNSAFE = np.arange(40) < 22
CLUSTER = np.concatenate([np.arange(22) // 3, 50 + np.arange(18) // 2]).astype(np.uint64)
"""Unsafe prompts of three rows each, safe ones of two."""
KINSHIP = Kinship(CLUSTER, np.zeros(40, np.uint64), np.zeros(40, np.int64))
TOKENS = GENERATOR.integers(1, 9, 40).astype(float)
OF_PROMPT = GENERATOR.normal(size=100)
LOSS = TOKENS * (2 + OF_PROMPT[CLUSTER.astype(int)])
"""Rows of one prompt are alike."""


def drawn(number, statistic):
    """Percentiles over `number` draws of whole prompts, those of each label to their number, written as loops."""
    generator, values = np.random.default_rng(77), []
    prompts = [[np.flatnonzero(name == CLUSTER) for name in np.unique(CLUSTER[arm])] for arm in (UNSAFE, ~UNSAFE)]
    for _ in range(number):
        rows = [of[i] for of in prompts for i in generator.integers(0, len(of), len(of))]
        values.append(statistic(np.concatenate(rows)))
    return np.percentile(values, [2.5, 97.5])


def auc(rows):
    unsafe, safe = LOSS[rows][UNSAFE[rows]], LOSS[rows][~UNSAFE[rows]]
    return (np.greater.outer(unsafe, safe) + np.equal.outer(unsafe, safe) / 2).mean()


def test_ratios_and_the_area_have_the_intervals_of_loops():
    def statistic(weights):
        unsafe = ratio(weights, LOSS * UNSAFE, TOKENS * UNSAFE)
        return np.stack([unsafe, area_under_curve(weights, LOSS, UNSAFE)], axis=1)

    found = intervals(statistic, KINSHIP, UNSAFE, 4000, (1, "x"))
    of_unsafe = drawn(4000, lambda rows: LOSS[rows][UNSAFE[rows]].sum() / TOKENS[rows][UNSAFE[rows]].sum())
    width = np.ptp(of_unsafe)
    assert found[:, 0] == pytest.approx(of_unsafe, abs=0.06 * width)
    of_area = drawn(1500, auc)
    assert found[:, 1] == pytest.approx(of_area, abs=0.08 * np.ptp(of_area))
    alone = Kinship.none(np.zeros(40, np.int64))  # as if rows of one prompt said something each
    narrow = intervals(statistic, alone, UNSAFE, 4000, (1, "x"))
    assert np.ptp(narrow[:, 0]) < 0.75 * width


def test_the_area_is_the_share_of_pairs_and_ties_are_halves():
    scores = np.array([1.0, 2, 2, 3, 0, 2])
    unsafe = np.array([True, True, True, False, False, False])
    pairs = [(a > b) + (a == b) / 2 for a in scores[unsafe] for b in scores[~unsafe]]
    weights = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [0, 2, 0, 1, 0, 3]])
    found = area_under_curve(weights, scores, unsafe)
    assert found[0] == pytest.approx(np.mean(pairs))
    assert np.isnan(found[1])
    assert found[2] == pytest.approx((0 * 1 + 0.5 * 3) / 4)


@pytest.mark.parametrize("num_scores", [3, 1000])
@pytest.mark.parametrize("num_rows", [12, 300])
def test_the_area_of_few_and_of_many_rows_is_that_of_whole_numbers(num_rows, num_scores, monkeypatch):
    """Pairs are looked at, or rows sorted; the counts of pairs won are added as Python's integers here."""
    scores = GENERATOR.integers(0, num_scores, num_rows).astype(float)
    unsafe = GENERATOR.random(num_rows) < 0.4
    unsafe[:2] = True, False
    weights = GENERATOR.integers(0, 4, (5, num_rows))
    weights[:, :2] = 1  # so that there is a pair
    expected = []
    for row in weights.tolist():
        arms = [[(s, w) for s, w, u in zip(scores, row, unsafe, strict=True) if u == arm] for arm in (True, False)]
        won = sum(a * b * (2 * (s > t) + (s == t)) for s, a in arms[0] for t, b in arms[1])
        expected.append(won / 2 / (sum(w for _, w in arms[0]) * sum(w for _, w in arms[1])))
    for most in (0, 10**6):
        monkeypatch.setattr("dist_moe.stats.cluster_bootstrap.PAIRS_AT_ONCE", most)
        assert area_under_curve(weights.astype(float), scores, unsafe).tolist() == expected


def test_what_has_no_value_has_no_interval():
    found = intervals(lambda w: ratio(w, LOSS * 0, TOKENS * 0)[:, None], KINSHIP, UNSAFE, 50, (1, "x"))
    assert np.isnan(found).all()


def test_the_key_decides_what_is_drawn():
    def of(key):
        return intervals(lambda w: ratio(w, LOSS, TOKENS)[:, None], KINSHIP, UNSAFE, 300, key).tolist()

    once = of((1, "x"))
    assert of((1, "x")) == once
    assert of((2, "x")) != once
    assert of((1, "y")) != once


def test_many_rows_are_weighed_in_parts(monkeypatch):
    whole = intervals(lambda w: ratio(w, LOSS, TOKENS)[:, None], KINSHIP, UNSAFE, 4000, (1, "x"))
    monkeypatch.setattr("dist_moe.stats.cluster_bootstrap.CELLS_AT_ONCE", 40 * 7)
    parts = []

    def statistic(weights):
        parts.append(len(weights))
        return ratio(weights, LOSS, TOKENS)[:, None]

    found = intervals(statistic, KINSHIP, UNSAFE, 4000, (1, "x"))
    assert (max(parts), sum(parts)) == (7, 4000)
    assert found == pytest.approx(whole, abs=0.05 * np.ptp(whole))
