"""Rows of one prompt are one piece of evidence: which labels they exchange, and how they are drawn."""

from itertools import combinations, product

import numpy as np
import pytest

from dist_moe.rules import RULES
from dist_moe.stats.contrast import all_risk_diffs
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.design import Kinship, text_key
from dist_moe.stats.estimates import bootstrap_interval, sampling_variance
from dist_moe.stats.evidence import evidence
from dist_moe.stats.labelings import labelings, num_labelings
from dist_moe.stats.permutation import permutation_test
from dist_moe.stats.resamples import bootstrap_weights, half_samples
from dist_moe.stats.settings import StatisticsConfig
from tests.unit.stats.prompts import kin, random_counts

# safe: prompts 1 (two rows), 2, 3 (two rows); unsafe: 4 (two rows), 5, 6, and one more row of 3
CLUSTERS = [1, 1, 2, 3, 3, 4, 4, 5, 6, 3]
UNSAFE_P = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]) == 1
NO_PAIRS = [0] * 10


def design(clusters=CLUSTERS, pairs=NO_PAIRS, unsafe_P=UNSAFE_P):
    return kin(pairs, clusters).design(unsafe_P)


def all_labelings(made, unsafe_P=UNSAFE_P):
    labels_NP, exact = labelings(unsafe_P, made, 10_000, np.random.default_rng(0))
    assert exact
    return {tuple(labels_P.tolist()) for labels_P in labels_NP}


def slow_labelings(units, unsafe_P):
    """All ways to give blocks of rows as many unsafe labels as they have now; `units` are lists of blocks."""
    ways = []
    for blocks in units:
        number = sum(bool(unsafe_P[block[0]]) for block in blocks)
        ways.append([[row for block in chosen for row in block] for chosen in combinations(blocks, number)])
    for chosen in product(*ways):
        yield tuple(row in {row for rows in chosen for row in rows} for row in range(len(unsafe_P)))


def test_clusters_exchange_labels_as_wholes_with_those_of_as_many_rows():
    # of prompt 3 the unsafe row and the first safe one swap; the second safe one is always safe
    blocks = [[[0, 1], [5, 6]], [[2], [7], [8]], [[3], [9]], [[4]]]
    assert all_labelings(design()) == set(slow_labelings(blocks, UNSAFE_P))
    assert num_labelings(UNSAFE_P, design()) == 2 * 3 * 2


def test_clusters_that_share_a_pair_swap_as_wholes():
    # 1 and 4 are a pair by two names; 2 and 5 too; 6 is nobody's partner
    pairs = [21, 22, 23, 0, 0, 22, 21, 23, 29, 0]
    blocks = [[[0, 1], [5, 6]], [[2], [7]], [[8]], [[3], [9]], [[4]]]
    made = design(pairs=pairs)
    assert all_labelings(made) == set(slow_labelings(blocks, UNSAFE_P))
    unsafe, safe, both = made.units(UNSAFE_P)
    assert (unsafe.rows_R.tolist(), safe.rows_R.tolist()) == ([8], [])
    assert (both.rows_R.tolist(), both.unit_R.tolist()) == ([0, 1, 5, 6, 2, 7, 3, 4, 9], [0] * 4 + [1] * 2 + [2] * 3)


@pytest.mark.parametrize(
    ("pairs", "why"),
    [
        ([21, 21, 0, 0, 0, 0, 0, 21, 0, 0], "two rows against one"),
        ([0, 0, 21, 0, 0, 0, 0, 21, 21, 0], "three prompts"),
        ([0, 0, 0, 0, 0, 0, 0, 22, 22, 0], "two prompts of one arm"),
        ([21, 22, 0, 0, 0, 21, 0, 22, 0, 0], "a prompt with two partners"),
        ([0, 0, 21, 21, 0, 0, 0, 0, 0, 21], "a prompt of both arms"),
    ],
)
def test_what_is_no_pair_of_clusters_is_left_as_if_it_had_no_name(pairs, why):
    assert all_labelings(design(pairs=pairs)) == all_labelings(design()), why
    for found, expected in zip(design(pairs=pairs).units(UNSAFE_P), design().units(UNSAFE_P), strict=True):
        assert found.rows_R.tolist() == expected.rows_R.tolist()


def test_clusters_of_several_batches_exchange_labels_among_themselves():
    clusters, batch_P = [1, 2, 3, 4, 9, 9, 1, 5, 3, 6, 7, 8], np.repeat([0, 1], [6, 6])
    unsafe_P = np.array([0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0, 1]) == 1
    made = Kinship(np.array(clusters, np.uint64), np.zeros(12, np.uint64), batch_P).design(unsafe_P)
    blocks = [[[0, 6], [2, 8]], [[4, 5]], [[1], [3]], [[7], [9], [10], [11]]]
    assert all_labelings(made, unsafe_P) == set(slow_labelings(blocks, unsafe_P))


def test_bootstrap_draws_clusters_as_wholes():
    weights_NP = bootstrap_weights(UNSAFE_P, design(), 30_000, np.random.default_rng(0))
    found, times = np.unique(weights_NP, axis=0, return_counts=True)
    expected = {}
    for safe in product([(0, 1), (2,)], repeat=2):
        for unsafe in product([(5, 6), (7,), (8,)], repeat=3):
            drawn = [*safe, *unsafe, (3, 4, 9)]
            key = tuple(sum(row in unit for unit in drawn) for row in range(10))
            expected[key] = expected.get(key, 0) + 1 / (4 * 27)
    shares = dict(zip(map(tuple, found.tolist()), times / 30_000, strict=True))
    assert shares.keys() == expected.keys()
    assert all(abs(shares[key] - expected[key]) < 0.01 for key in expected)


def test_half_samples_are_of_whole_clusters():
    # no unit of both arms but prompt 3, which is kept only where an arm were empty otherwise
    chosen_NP = half_samples(UNSAFE_P, design(), 600, np.random.default_rng(0))
    halves = {tuple(np.nonzero(chosen_P)[0].tolist()) for chosen_P in chosen_NP}
    assert halves == {(*safe, *unsafe) for safe in [(0, 1), (2,)] for unsafe in [(5, 6), (7,), (8,)]}


def slow_variance(counts, unsafe_P, units):
    """From the definition: `units` are lists of rows, of one arm or of both."""
    kinds = {}
    for rows in units:
        z_LE = 0.0
        for row in rows:
            arm = [other for other in range(len(unsafe_P)) if unsafe_P[other] == unsafe_P[row]]
            total = sum(int(counts.tokens_P[other]) for other in arm)
            rate_LE = sum(counts.counts_PLE[other] for other in arm) / total
            sign = 1 if unsafe_P[row] else -1
            z_LE = z_LE + sign * (counts.counts_PLE[row] - rate_LE * counts.tokens_P[row]) / total
        kinds.setdefault(frozenset(bool(unsafe_P[row]) for row in rows), []).append(z_LE)
    variance_LE = 0.0
    for values in kinds.values():
        n = len(values)
        if n == 1:
            variance_LE = variance_LE + values[0] ** 2
        else:
            variance_LE = variance_LE + n / (n - 1) * sum((value - sum(values) / n) ** 2 for value in values)
    return variance_LE


def test_sampling_variance_is_that_of_clusters():
    counts = random_counts(0, 10)
    units = [[0, 1], [2], [3, 4, 9], [5, 6], [7], [8]]
    np.testing.assert_allclose(
        sampling_variance(counts, UNSAFE_P, design()), slow_variance(counts, UNSAFE_P, units), rtol=1e-12
    )


@pytest.mark.parametrize("estimate", ["micro", "macro"])
@pytest.mark.parametrize("statistic", ["difference", "standardized"])
def test_p_of_clusters_against_a_loop_over_their_labelings(estimate, statistic):
    counts = random_counts(4, 10)
    blocks = [[[0, 1], [5, 6]], [[2], [7], [8]], [[3], [9]], [[4]]]
    every = [np.array(labels) for labels in slow_labelings(blocks, UNSAFE_P)]
    diffs = [all_risk_diffs(labels_P[None], ~labels_P[None], counts, estimate)[0] for labels_P in [UNSAFE_P, *every]]
    observed_LE, others = diffs[0], np.array(diffs[1:])
    unit_LE = np.ones(observed_LE.shape)
    if statistic == "standardized":
        rate_LE = counts.counts_PLE.sum(axis=0) / counts.tokens_P.sum()
        z = [
            counts.counts_PLE[row] - rate_LE * counts.tokens_P[row]
            if estimate == "micro"
            else counts.counts_PLE[row] / counts.tokens_P[row]
            for row in range(10)
        ]
        spread_LE = np.std([sum(z[row] for row in np.nonzero(labels_P)[0]) for labels_P in every], axis=0)
        unit_LE = spread_LE + np.median(spread_LE[spread_LE > 1e-9])
    largest_N = (others / unit_LE).max(axis=(1, 2))
    test = permutation_test(
        counts,
        UNSAFE_P,
        design(),
        num_permutations=100,
        estimate=estimate,
        statistic=statistic,
        generator=np.random.default_rng(0),
    )
    np.testing.assert_allclose(test.p_LE, (others >= observed_LE - 1e-9).mean(axis=0))
    family_LE = (largest_N[:, None, None] >= observed_LE / unit_LE - 1e-9).mean(axis=0)
    np.testing.assert_allclose(test.family_p_LE, family_LE)
    assert test.smallest_p == 1 / 12


def question_of(answers, clusters):
    """Rows whose counts follow from their prompt alone: expert 0 for unsafe prompts, expert 1 for safe ones."""
    unsafe_P = np.repeat([False, True], answers)
    counts_PLE = np.array([[[0, 4, 2]], [[4, 0, 2]]])[unsafe_P.astype(int)]
    settings = StatisticsConfig(permutations=2000, resamples=50)
    counts = RoutingCounts(counts_PLE, np.full(2 * answers, 4), 2)
    return evidence(counts, unsafe_P, kin([0] * 2 * answers, clusters), settings, 0, 0)


def test_one_question_in_each_arm_is_no_evidence_however_many_answers_it_has():
    apart = question_of(8, range(16))
    assert apart.test.q_LE[0, 0] == pytest.approx(0.0015, abs=0.001)  # were they sixteen questions
    one = question_of(8, [0] * 8 + [1] * 8)
    assert one.test.p_LE.min() == one.test.smallest_p == 0.5
    assert one.test.family_p_LE.min() >= 0.5
    low_LE, high_LE = one.interval
    assert (low_LE == -1).all()
    assert (high_LE == 1).all()
    assert np.isinf(one.variance_LE).all()
    for name in ("threshold_top_k", "esft_token", "steermoe"):
        assert (RULES[name]().stability(one) == 0).all()
    for name in ("stable", "significant"):
        assert not RULES[name]().select(one).any()
        assert RULES[name]().select(apart).any()


def test_the_same_question_in_both_arms_is_one_swap():
    """Eight answers each to one question: two labelings, and nothing of other questions."""
    both = question_of(8, [0] * 16)
    assert num_labelings(both.unsafe_P, both.design) == 2
    assert both.test.p_LE.min() == 0.5
    assert not both.can_be_halved


def test_interval_is_that_of_drawn_clusters():
    counts = random_counts(3, 10)
    weights_NP = bootstrap_weights(UNSAFE_P, design(), 40, np.random.default_rng(5))
    diffs = all_risk_diffs(weights_NP * UNSAFE_P, weights_NP * ~UNSAFE_P, counts, "micro")
    ends = bootstrap_interval(
        counts,
        UNSAFE_P,
        design(),
        estimate="micro",
        num_resamples=40,
        confidence=0.8,
        generator=np.random.default_rng(5),
    )
    np.testing.assert_allclose(ends, np.quantile(diffs, [0.1, 0.9], axis=0), atol=1e-14)


def test_rows_without_a_counted_token_leave_the_cluster():
    counts = random_counts(0, 10)
    tokens_P = counts.tokens_P * (np.arange(10) != 1)
    counts = RoutingCounts(counts.counts_PLE * (tokens_P > 0)[:, None, None], tokens_P, counts.experts_per_token)
    found = evidence(counts, UNSAFE_P, kin(NO_PAIRS, CLUSTERS), StatisticsConfig(), 0, 0)
    # prompt 1 has one row left, so that it exchanges labels with 2, 5 and 6, and 4 with nobody
    assert num_labelings(found.unsafe_P, found.design) == 6 * 2


def test_texts_have_keys_that_are_not_0_and_do_not_change():
    assert text_key("a") == 0xCA978112CA1BBDCA
    kinship = Kinship.of_texts(["a", "b", "a"], ["x", None, "x"], np.zeros(3, np.int64))
    assert kinship.cluster_P[0] == kinship.cluster_P[2] != kinship.cluster_P[1]
    assert kinship.pair_P.tolist() == [text_key("x"), 0, text_key("x")]
