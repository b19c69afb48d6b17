"""Means over seeds and prompts against textbook special cases, sums in loops, and their coverage."""

import numpy as np
import pytest
from scipy import stats

from dist_moe.stats.crossed import crossed_difference, crossed_mean
from dist_moe.stats.proportions import paired_difference, wilson


def test_one_run_is_students_interval_of_its_prompts():
    values_P = np.random.default_rng(0).normal(2, 3, 30)
    found = crossed_mean(values_P[None])
    expected = stats.ttest_1samp(values_P, 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.value, found.low, found.high], [values_P.mean(), *expected], rtol=1e-12)


def test_runs_that_differ_as_a_whole_leave_students_interval_of_their_means():
    means_S = np.array([0.2, 1.5, 0.9])
    found = crossed_mean(np.repeat(means_S[:, None], 40, axis=1))
    expected = stats.ttest_1samp(means_S, 0).confidence_interval(0.95)
    np.testing.assert_allclose([found.low, found.high], expected, rtol=1e-12)


def test_runs_that_are_the_same_add_no_evidence():
    values_P = np.random.default_rng(1).normal(size=25)
    one, five = crossed_mean(values_P[None]), crossed_mean(np.repeat(values_P[None], 5, axis=0))
    np.testing.assert_allclose([five.low, five.high], [one.low, one.high], rtol=1e-12)


def test_the_variance_is_that_of_the_two_way_model_with_satterthwaites_degrees_of_freedom():
    generator = np.random.default_rng(2)
    S, P = 4, 12
    y = generator.normal(size=(S, 1)) + generator.normal(size=P) + generator.normal(size=(S, P))
    total = y.mean()
    ms_s = P * sum((y[s].mean() - total) ** 2 for s in range(S)) / (S - 1)
    ms_p = S * sum((y[:, p].mean() - total) ** 2 for p in range(P)) / (P - 1)
    rest = sum((y[s, p] - y[s].mean() - y[:, p].mean() + total) ** 2 for s in range(S) for p in range(P))
    ms_e = rest / ((S - 1) * (P - 1))
    square = ms_s + ms_p - ms_e
    df = square**2 / (ms_s**2 / (S - 1) + ms_p**2 / (P - 1) + ms_e**2 / ((S - 1) * (P - 1)))
    assert square > max(ms_s, ms_p)
    half = stats.t.ppf(0.975, df) * np.sqrt(square / (S * P))
    found = crossed_mean(y)
    np.testing.assert_allclose([found.low, found.high], [total - half, total + half], rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_rate_without_variance_has_wilsons_interval_on_its_prompts(value):
    found = crossed_mean(np.full((3, 40), value), are_rates=True)
    assert (found.low, found.high) == pytest.approx(wilson(value * 40, 40), abs=1e-12)
    assert found.high - found.low > 0.05
    assert crossed_mean(np.full((3, 40), value)).low == value


@pytest.mark.parametrize(("num_runs", "at_least"), [(2, 0.86), (3, 0.9), (5, 0.92)])
def test_it_covers_the_truth_of_other_seeds_and_prompts(num_runs, at_least):
    generator, covered = np.random.default_rng(3), 0
    for _ in range(600):
        effects = generator.normal(0, 0.5, (num_runs, 1)) + generator.normal(0, 1, 40)
        found = crossed_mean(effects + generator.normal(0, 1, (num_runs, 40)))
        covered += found.low <= 0 <= found.high
    assert at_least <= covered / 600 <= 0.985


def test_where_no_value_is_below_0_the_interval_is_cut_there_and_covers_as_often():
    generator, cut = np.random.default_rng(5), 0
    for _ in range(200):
        values_P = generator.lognormal(-0.5, 1, 4)  # their mean is 1
        found, student = crossed_mean(values_P[None], least=0.0), stats.ttest_1samp(values_P, 0).confidence_interval()
        expected = [values_P.mean(), max(0.0, student.low), student.high]
        np.testing.assert_allclose([found.value, found.low, found.high], expected, rtol=1e-12, atol=0)
        assert (found.low <= 1 <= found.high) == (student.low <= 1 <= student.high)
        cut += student.low < 0
    assert 50 < cut < 200
    assert crossed_mean(np.array([[0.0, 0.0, 0.0]]), least=0.0).low == 0.0
    assert crossed_mean(np.array([[-1e-17, -1e-17]]), least=0.0).low == -1e-17  # a divergence of 0, rounded


def test_a_difference_is_clear_if_its_interval_is_on_one_side():
    clear = crossed_mean(np.array([[0.9, 1.0, 1.1, 1.0]] * 2) + np.array([[0.0], [0.02]]))
    assert clear.is_clear
    assert not crossed_mean(np.array([[-1.0, 1.0, 0.5]])).is_clear
    assert crossed_mean(-np.array([[0.9, 1.0, 1.1, 1.0]])).is_clear


def test_a_difference_of_rates_is_that_of_its_pairs_and_never_surer_than_its_prompts_allow():
    generator = np.random.default_rng(4)
    first, second = (generator.random((3, 40)) < share for share in (0.3, 0.6))
    found, plain = crossed_difference(second * 1.0, first * 1.0, are_rates=True), crossed_mean(second * 1.0 - first)
    assert found.value == plain.value
    assert found.low <= plain.low
    assert found.high >= plain.high
    all_change = crossed_difference(np.ones((3, 20)), np.zeros((3, 20)), are_rates=True)
    assert (all_change.low, all_change.high) == pytest.approx(paired_difference(0, 0, 20, 0), abs=1e-12)
    assert crossed_difference(np.ones((3, 20)), np.zeros((3, 20))).low == 1.0
    two_of_four = crossed_difference(np.array([[1.0, 1, 0, 0]]), np.array([[1.0, 0, 1, 0]]), are_rates=True)
    assert two_of_four.low <= paired_difference(1, 1, 1, 1)[0] < 0


def test_one_prompt_has_no_interval():
    with pytest.raises(ValueError, match="expected two prompts or more, got 1"):
        crossed_mean(np.ones((3, 1)))
