from itertools import combinations

import numpy as np
import pytest

from dist_moe.stats import contrast
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.labelings import labelings
from dist_moe.stats.permutation import benjamini_hochberg, permutation_test
from tests.unit.stats.prompts import half_unsafe, paired, random_counts, slow_risk_diff
from tools.simulate import Scenario, performance


def run(counts, unsafe_P, num, *, strata_P=None, estimate="micro", statistic="difference", seed=0):
    strata_P = np.zeros(len(unsafe_P), np.int64) if strata_P is None else strata_P
    return permutation_test(
        counts,
        unsafe_P,
        paired(unsafe_P, strata_P),
        num_permutations=num,
        estimate=estimate,
        statistic=statistic,
        generator=np.random.default_rng(seed),
    )


def slow_p(counts, unsafe_P, labels_NP, estimate, own, unit_LE=1.0):
    """p and family-wise p, one labeling after the other; the maximum is of the differences over `unit_LE`."""
    observed_LE = slow_risk_diff(counts, unsafe_P, range(len(unsafe_P)), estimate)
    reached_LE, family_LE = np.zeros(observed_LE.shape), np.zeros(observed_LE.shape)
    for labels_P in labels_NP:
        diff_LE = slow_risk_diff(counts, labels_P, range(len(labels_P)), estimate)
        reached_LE += diff_LE >= observed_LE - 1e-9
        family_LE += (diff_LE / unit_LE).max() >= (observed_LE - 1e-9) / unit_LE
    return (reached_LE + own) / (len(labels_NP) + own), (family_LE + own) / (len(labels_NP) + own)


@pytest.mark.parametrize("estimate", ["micro", "macro"])
def test_exact_test_against_all_labelings(estimate, monkeypatch):
    monkeypatch.setattr(contrast, "VALUES_AT_ONCE", 150)
    counts, unsafe_P = random_counts(1, 8), half_unsafe(8)
    labels_NP = np.zeros((70, 8), bool)
    for labels_P, chosen in zip(labels_NP, combinations(range(8), 4), strict=True):
        labels_P[list(chosen)] = True
    p_LE, family_p_LE = slow_p(counts, unsafe_P, labels_NP, estimate, own=0)
    test = run(counts, unsafe_P, 70, estimate=estimate)
    np.testing.assert_allclose(test.p_LE, p_LE)
    np.testing.assert_allclose(test.family_p_LE, family_p_LE)
    assert test.smallest_p == 1 / 70


@pytest.mark.parametrize("strata_P", [np.zeros(16, int), np.tile(np.arange(1, 9), 2)])
def test_drawn_test_against_its_labelings(strata_P):
    counts, unsafe_P = random_counts(2, 16), half_unsafe(16)
    labels_NP, _ = labelings(unsafe_P, paired(unsafe_P, strata_P), 99, np.random.default_rng(3))
    p_LE, family_p_LE = slow_p(counts, unsafe_P, labels_NP, "micro", own=1)
    test = run(counts, unsafe_P, 99, strata_P=strata_P, seed=3)
    np.testing.assert_allclose(test.p_LE, p_LE)
    np.testing.assert_allclose(test.family_p_LE, family_p_LE)
    assert test.smallest_p == 1 / 100


def slow_unit(counts, unsafe_P, strata_P, estimate):
    """Standard deviation, over all labelings, of the sum over unsafe prompts of z; and its median over experts."""
    rate_LE = counts.counts_PLE.sum(axis=0) / counts.tokens_P.sum()
    z = []
    for counts_LE, tokens in zip(counts.counts_PLE, counts.tokens_P, strict=True):
        z.append(counts_LE - rate_LE * tokens if estimate == "micro" else counts_LE / tokens)
    labels_NP, exact = labelings(unsafe_P, paired(unsafe_P, strata_P), 100_000, np.random.default_rng(0))
    assert exact
    spread_LE = np.std([sum(z[p] for p in np.nonzero(labels_P)[0]) for labels_P in labels_NP], axis=0)
    return spread_LE + np.median(spread_LE[spread_LE > 1e-9])


@pytest.mark.parametrize("estimate", ["micro", "macro"])
@pytest.mark.parametrize("strata_P", [np.zeros(10, int), np.array([1, 2, 0, 0, 0, 2, 0, 1, 0, 0])])
def test_standardized_differences_over_all_labelings(strata_P, estimate, monkeypatch):
    monkeypatch.setattr(contrast, "VALUES_AT_ONCE", 600)
    counts, unsafe_P = random_counts(5, 10), half_unsafe(10)
    counts.counts_PLE[:, 1, 3:] = 0  # experts that are never used have no spread
    labels_NP, _ = labelings(unsafe_P, paired(unsafe_P, strata_P), 1000, np.random.default_rng(0))
    unit_LE = slow_unit(counts, unsafe_P, strata_P, estimate)
    p_LE, family_p_LE = slow_p(counts, unsafe_P, labels_NP, estimate, 0, unit_LE)
    test = run(counts, unsafe_P, 1000, strata_P=strata_P, estimate=estimate, statistic="standardized")
    np.testing.assert_allclose(test.p_LE, p_LE)
    np.testing.assert_allclose(test.family_p_LE, family_p_LE)
    plain = run(counts, unsafe_P, 1000, strata_P=strata_P, estimate=estimate)
    assert plain.p_LE.tobytes() == test.p_LE.tobytes()
    assert (plain.family_p_LE != test.family_p_LE).any()


@pytest.mark.filterwarnings("error")
def test_prompts_that_do_not_differ_have_no_spread_and_no_nan():
    counts = RoutingCounts(np.array([[[4, 0]]] * 6), np.full(6, 4), 1)
    test = run(counts, half_unsafe(6), 100, statistic="standardized")
    assert (test.p_LE == 1).all()
    assert (test.family_p_LE == 1).all()


@pytest.mark.parametrize("num_pairs", [1, 3, 8])
def test_pairs_have_the_p_that_their_number_allows(num_pairs):
    # expert 0 is used by unsafe prompts only: the largest effect there is
    counts_PLE = np.array([[[0, 4]]] * num_pairs + [[[4, 0]]] * num_pairs)
    counts = RoutingCounts(counts_PLE, np.full(2 * num_pairs, 4), 1)
    test = run(counts, half_unsafe(2 * num_pairs), 1000, strata_P=np.tile(np.arange(1, num_pairs + 1), 2))
    assert test.p_LE[0, 0] == test.smallest_p == 2.0**-num_pairs
    assert test.family_p_LE[0, 0] == 2 * 2.0**-num_pairs  # all labels swapped give expert 1 as much
    assert test.p_LE[0, 1] == 1


def test_q_values_by_the_step_up_definition():
    p_X = np.random.default_rng(0).random(30) ** 2
    q_X = benjamini_hochberg(p_X)
    for p, q in zip(p_X, q_X, strict=True):
        assert q == pytest.approx(min(1, min(30 * other / (p_X <= other).sum() for other in p_X if other >= p)))


def test_the_same_seed_gives_the_same_p():
    counts, unsafe_P = random_counts(2, 16), half_unsafe(16)
    first, again, other = (run(counts, unsafe_P, 200, seed=seed) for seed in (1, 1, 2))
    assert first.p_LE.tobytes() == again.p_LE.tobytes()
    assert first.p_LE.tobytes() != other.p_LE.tobytes()


@pytest.mark.parametrize("statistic", ["difference", "standardized"])
@pytest.mark.parametrize("spread", [0.5, 1.0])
def test_level_holds_without_an_effect_though_the_threshold_selects_many(spread, statistic):
    scenario = Scenario(num_layers=4, num_experts=32, spread=spread)
    found = performance(scenario, num_batches=200, num_permutations=199, alpha=0.05, statistic=statistic, seed=1)
    assert found.family_error <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 200)
    assert found.family_error >= 0.05 - 2.6 * np.sqrt(0.05 * 0.95 / 200)
    assert found.fdr_error <= 0.05 + 2.6 * np.sqrt(0.05 * 0.95 / 200)
    assert found.above_threshold > 10


def power(*, statistic="difference", num_layers=2, num_experts=32, **changes):
    return performance(
        Scenario(num_layers=num_layers, num_experts=num_experts, **changes),
        num_batches=20,
        num_permutations=199,
        alpha=0.05,
        statistic=statistic,
        seed=2,
    ).family_power


def test_power_grows_with_effect_and_prompts():
    small, large = power(effect=2.0), power(effect=4.0)
    more = power(effect=2.0, num_safe=32, num_unsafe=32)
    assert small < large
    assert small < more
    assert more > 0.5


def test_standardized_differences_find_more():
    many = {"num_layers": 4, "num_experts": 64, "spread": 0.5, "effect": 1.0, "num_safe": 32, "num_unsafe": 32}
    assert power(statistic="standardized", **many) > 0.2 + power(**many)
