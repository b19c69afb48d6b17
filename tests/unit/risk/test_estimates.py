import numpy as np
import pytest

from dist_moe.risk import contrast
from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.estimates import bootstrap_interval, bootstrap_weights, risk_diff, sampling_variance, shrink
from dist_moe.risk.simulate import Population, simulate
from dist_moe.risk.table import risk_table
from tests.unit.risk.prompts import half_unsafe, random_counts, slow_risk_diff

COUNTS, UNSAFE_P = random_counts(0, 12), half_unsafe(12)


def test_micro_and_macro_by_hand():
    # safe: 1 of 2 tokens; unsafe: 3 of 3 tokens and 0 of 1 token
    counts = RoutingCounts(np.array([[[1, 1]], [[3, 0]], [[0, 1]]]), np.array([2, 3, 1]), 1)
    unsafe_P = np.array([False, True, True])
    np.testing.assert_allclose(risk_diff(counts, unsafe_P, "micro"), [[3 / 4 - 1 / 2, 1 / 4 - 1 / 2]])
    np.testing.assert_allclose(risk_diff(counts, unsafe_P, "macro"), [[1 / 2 - 1 / 2, 1 / 2 - 1 / 2]])


@pytest.mark.parametrize("estimate", ["micro", "macro"])
def test_estimates_are_the_definition(estimate):
    expected_LE = slow_risk_diff(COUNTS, UNSAFE_P, range(12), estimate)
    np.testing.assert_allclose(risk_diff(COUNTS, UNSAFE_P, estimate), expected_LE, atol=1e-14)


def test_micro_is_the_stored_risk_diff_bit_for_bit():
    table = risk_table(COUNTS, UNSAFE_P, np.zeros(12, np.intp), 1, ["batch"])
    assert risk_diff(COUNTS, UNSAFE_P, "micro").tobytes() == table.risk_diff_BLE[0].tobytes()


@pytest.mark.parametrize("estimate", ["micro", "macro"])
def test_interval_is_that_of_resampled_prompts(estimate, monkeypatch):
    monkeypatch.setattr(contrast, "VALUES_AT_ONCE", 150)  # several experts at a time
    weights_NP = bootstrap_weights(UNSAFE_P, 30, np.random.default_rng(5))
    assert (weights_NP[:, UNSAFE_P].sum(axis=1) == 6).all()
    assert (weights_NP[:, ~UNSAFE_P].sum(axis=1) == 6).all()
    rows_N = [np.repeat(np.arange(12), weights_P) for weights_P in weights_NP]
    diff_NLE = [slow_risk_diff(COUNTS, UNSAFE_P, rows, estimate) for rows in rows_N]
    ends = bootstrap_interval(
        COUNTS, UNSAFE_P, estimate=estimate, num_resamples=30, confidence=0.8, generator=np.random.default_rng(5)
    )
    np.testing.assert_allclose(ends, np.quantile(diff_NLE, [0.1, 0.9], axis=0), atol=1e-14)


def test_intervals_of_few_prompts_are_too_short_and_of_more_less_so():
    def coverage(size):
        population = Population(num_layers=2, num_experts=32, num_safe=size, num_unsafe=size)
        inside = []
        for seed in range(30):
            counts, unsafe_P = simulate(population, np.random.default_rng(seed))
            low_LE, high_LE = bootstrap_interval(
                counts,
                unsafe_P,
                estimate="micro",
                num_resamples=300,
                confidence=0.95,
                generator=np.random.default_rng(seed),
            )
            inside.append(((low_LE <= 0) & (high_LE >= 0)).mean())  # both arms are alike: the truth is 0
        return np.mean(inside)

    assert 0.86 < coverage(8) < 0.93 < coverage(48) < 0.96


def test_sampling_variance_is_the_variance_over_batches_of_one_population():
    diffs, variances = [], []
    for seed in range(300):
        counts = random_counts(seed, 60, num_layers=1, num_experts=4)
        diffs.append(risk_diff(counts, half_unsafe(60), "micro"))
        variances.append(sampling_variance(counts, half_unsafe(60)))
    np.testing.assert_allclose(np.mean(variances), np.var(diffs, ddof=1, axis=0).mean(), rtol=0.15)


def test_sampling_variance_by_hand():
    # safe: rates 0 and 1 of one token each; unsafe: no spread. n / (n - 1) = 2, residuals 1/2 twice, (sum of t)^2 = 4
    counts = RoutingCounts(np.array([[[0, 1]], [[1, 0]], [[1, 1]], [[1, 1]]]), np.array([1, 1, 2, 2]), 1)
    np.testing.assert_allclose(sampling_variance(counts, half_unsafe(4)), [[2 * 0.5 / 4] * 2])


def test_one_prompt_says_nothing_of_spread():
    assert np.isinf(sampling_variance(random_counts(0, 2), half_unsafe(2))).all()


def test_shrinkage_by_hand():
    # tau^2 = 0.03 in the first layer and v = 0.01: 3/4 of the distance to the pooled value stays; 0 in the second
    shrunk_LE = shrink(
        np.array([[0.2, -0.2], [0.2, -0.2]]), np.full((2, 2), 0.01), np.full((2, 2), 0.1), np.array([0.03, 0.0])
    )
    np.testing.assert_allclose(shrunk_LE, [[0.1 + 0.75 * 0.1, 0.1 - 0.75 * 0.3], [0.1, 0.1]])


def test_shrinkage_at_its_ends():
    diff_LE, pooled_LE = np.array([[0.2, -0.2]]), np.array([[0.1, 0.0]])
    assert (shrink(diff_LE, np.full((1, 2), np.inf), pooled_LE, np.ones(1)) == pooled_LE).all()
    for between in (0.0, 1.0):
        np.testing.assert_allclose(shrink(diff_LE, np.zeros((1, 2)), pooled_LE, np.full(1, between)), diff_LE)


def test_shrinkage_brings_noisy_batches_nearer_to_the_truth():
    generator = np.random.default_rng(0)
    truth_LE = 0.1 + 0.05 * generator.normal(size=(20, 60))
    seen_LE = truth_LE + 0.1 * generator.normal(size=truth_LE.shape)
    shrunk_LE = shrink(seen_LE, np.full(truth_LE.shape, 0.01), np.full(truth_LE.shape, 0.1), np.full(20, 0.0025))
    assert ((shrunk_LE - truth_LE) ** 2).mean() < 0.3 * ((seen_LE - truth_LE) ** 2).mean()
