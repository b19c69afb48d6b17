import numpy as np
import pytest

from dist_moe.stats import contrast
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.estimates import bootstrap_interval, risk_diff, sampling_variance, shrink
from dist_moe.stats.resamples import bootstrap_weights
from dist_moe.stats.table import risk_table
from tests.unit.stats.prompts import half_unsafe, paired, random_counts, slow_risk_diff
from tools.simulate import Scenario, intervals

COUNTS, UNSAFE_P = random_counts(0, 12), half_unsafe(12)
NO_PAIRS, PAIRS_P = np.zeros(12, np.int64), np.tile(np.arange(1, 7), 2)
MIXED_P = np.array([1, 0, 2, 0, 3, 0, 0, 3, 1, 2, 0, 0])
ONE_PAIR_P, ONE_WITHOUT_P = np.where(PAIRS_P == 2, 1, 0), np.where(PAIRS_P == 2, 0, PAIRS_P)


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
@pytest.mark.parametrize("strata_P", [NO_PAIRS, MIXED_P, PAIRS_P])
def test_interval_is_that_of_resampled_prompts(estimate, strata_P, monkeypatch):
    monkeypatch.setattr(contrast, "VALUES_AT_ONCE", 150)  # several experts at a time
    weights_NP = bootstrap_weights(UNSAFE_P, paired(UNSAFE_P, strata_P), 30, np.random.default_rng(5))
    assert (weights_NP[:, UNSAFE_P].sum(axis=1) == 6).all()
    assert (weights_NP[:, ~UNSAFE_P].sum(axis=1) == 6).all()
    rows_N = [np.repeat(np.arange(12), weights_P) for weights_P in weights_NP]
    diff_NLE = [slow_risk_diff(COUNTS, UNSAFE_P, rows, estimate) for rows in rows_N]
    ends = bootstrap_interval(
        COUNTS,
        UNSAFE_P,
        paired(UNSAFE_P, strata_P),
        estimate=estimate,
        num_resamples=30,
        confidence=0.8,
        generator=np.random.default_rng(5),
    )
    np.testing.assert_allclose(ends, np.quantile(diff_NLE, [0.1, 0.9], axis=0), atol=1e-14)


def simulated(size, *, as_rows=False, **changes):
    scenario = Scenario(num_layers=2, num_experts=32, num_safe=size, num_unsafe=size, **changes)
    return intervals(scenario, num_batches=30, num_resamples=300, as_rows=as_rows, seed=0)


def test_intervals_of_few_prompts_are_too_short_and_of_more_less_so():
    assert 0.88 < simulated(8).coverage < 0.925 < simulated(48).coverage < 0.96


def test_intervals_of_pairs_with_much_in_common_are_right_and_shorter_than_of_prompts_on_their_own():
    pairs, apart = (simulated(48, spread=0.5, pair_spread=2.0, as_rows=given) for given in (False, True))
    assert 0.91 < pairs.coverage < 0.96
    assert apart.coverage > 0.99
    assert pairs.length < 0.5 * apart.length


def slow_variance(counts, unsafe_P, strata_P):
    """Stratum by stratum and prompt by prompt, from the definition."""
    arms = {arm: [p for p in range(len(unsafe_P)) if unsafe_P[p] == arm] for arm in (True, False)}
    z = {}
    for prompts in arms.values():
        total = sum(int(counts.tokens_P[p]) for p in prompts)
        rate_LE = sum(counts.counts_PLE[p] for p in prompts) / total
        z |= {p: (counts.counts_PLE[p] - rate_LE * counts.tokens_P[p]) / total for p in prompts}
    strata = [[z[p] for p in prompts if strata_P[p] == 0] for prompts in arms.values()]
    pairs = [[p for p in range(len(unsafe_P)) if strata_P[p] == pair] for pair in set(strata_P.tolist()) - {0}]
    strata.append([z[b] - z[a] if unsafe_P[b] else z[a] - z[b] for a, b in pairs])
    variance_LE = np.zeros(counts.counts_PLE.shape[1:])
    for values in strata:
        number = len(values)
        if number == 1:
            variance_LE += values[0] ** 2
        elif number:
            variance_LE += number / (number - 1) * sum((value - sum(values) / number) ** 2 for value in values)
    return variance_LE


@pytest.mark.parametrize("strata_P", [NO_PAIRS, MIXED_P, PAIRS_P, ONE_PAIR_P, ONE_WITHOUT_P])
def test_sampling_variance_is_the_stratified_linearised_one(strata_P):
    expected_LE = slow_variance(COUNTS, UNSAFE_P, strata_P)
    np.testing.assert_allclose(sampling_variance(COUNTS, UNSAFE_P, paired(UNSAFE_P, strata_P)), expected_LE, rtol=1e-12)


def test_sampling_variance_is_the_variance_over_batches_of_one_population():
    diffs, variances = [], []
    for seed in range(300):
        counts = random_counts(seed, 60, num_layers=1, num_experts=4)
        diffs.append(risk_diff(counts, half_unsafe(60), "micro"))
        variances.append(sampling_variance(counts, half_unsafe(60), paired(half_unsafe(60), np.zeros(60, int))))
    np.testing.assert_allclose(np.mean(variances), np.var(diffs, ddof=1, axis=0).mean(), rtol=0.15)


def test_sampling_variance_of_pairs_is_the_variance_over_batches_too():
    # both prompts of a pair use expert 0 at the pair's own rate, which differs much between pairs
    generator, strata_P = np.random.default_rng(0), np.tile(np.arange(1, 41), 2)
    diffs, variances, apart = [], [], []
    for _ in range(400):
        rate_Q = np.tile(generator.beta(0.5, 0.5, 40), 2)
        counts_P = generator.binomial(10, rate_Q)
        counts = RoutingCounts(np.stack([counts_P, 10 - counts_P], axis=1)[:, None, :], np.full(80, 10), 1)
        diffs.append(risk_diff(counts, half_unsafe(80), "micro")[0, 0])
        variances.append(sampling_variance(counts, half_unsafe(80), paired(half_unsafe(80), strata_P))[0, 0])
        apart.append(sampling_variance(counts, half_unsafe(80), paired(half_unsafe(80), np.zeros(80, int)))[0, 0])
    np.testing.assert_allclose(np.mean(variances), np.var(diffs, ddof=1), rtol=0.15)
    assert np.mean(apart) > 3 * np.mean(variances)


def test_sampling_variance_by_hand():
    # safe: rates 0 and 1 of one token each; unsafe: no spread. n / (n - 1) = 2, residuals 1/2 twice, (sum of t)^2 = 4
    counts = RoutingCounts(np.array([[[0, 1]], [[1, 0]], [[1, 1]], [[1, 1]]]), np.array([1, 1, 2, 2]), 1)
    np.testing.assert_allclose(
        sampling_variance(counts, half_unsafe(4), paired(half_unsafe(4), np.zeros(4, int))), [[2 * 0.5 / 4] * 2]
    )


@pytest.mark.parametrize("strata_P", [[0, 0], [1, 1]])
def test_one_prompt_says_nothing_of_spread(strata_P):
    assert np.isinf(sampling_variance(random_counts(0, 2), half_unsafe(2), paired(half_unsafe(2), strata_P))).all()


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
