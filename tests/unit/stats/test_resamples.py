from itertools import combinations, product

import numpy as np
import pytest

from dist_moe.stats.resamples import bootstrap_weights, half_samples
from tests.unit.stats.prompts import half_unsafe, paired

# prompts 0 to 4 are safe; pairs (0, 5), (2, 7) and (3, 6); safe 1 and 4 and unsafe 8 and 9 have no partner
MIXED_P = np.array([1, 0, 2, 3, 0, 1, 3, 2, 0, 0])
UNSAFE_P = half_unsafe(10)
PAIRS = [(0, 5), (2, 7), (3, 6)]


def rows(array_NP):
    """Each distinct row, and its share."""
    found_UP, times_U = np.unique(array_NP, axis=0, return_counts=True)
    return dict(zip(map(tuple, found_UP.tolist()), (times_U / len(array_NP)).tolist(), strict=True))


def weights(drawn):
    return tuple(sum(prompt in unit for unit in drawn) for prompt in range(10))


def test_bootstrap_draws_pairs_as_wholes_and_each_arms_other_prompts_on_their_own():
    expected = {}
    for pairs in product(PAIRS, repeat=3):
        for safe in product([(1,), (4,)], repeat=2):
            for unsafe in product([(8,), (9,)], repeat=2):
                key = weights([*pairs, *safe, *unsafe])
                expected[key] = expected.get(key, 0) + 1 / (27 * 4 * 4)
    found = rows(bootstrap_weights(UNSAFE_P, paired(UNSAFE_P, MIXED_P), 40_000, np.random.default_rng(0)))
    assert found.keys() == expected.keys()
    assert all(abs(found[key] - expected[key]) < 0.005 for key in expected)


def test_half_samples_take_half_of_the_pairs_as_wholes_and_half_of_each_arms_other_prompts():
    expected = {
        tuple(prompt in (*pair, safe, unsafe) for prompt in range(10))
        for pair in PAIRS
        for safe in (1, 4)
        for unsafe in (8, 9)
    }
    found = rows(half_samples(UNSAFE_P, paired(UNSAFE_P, MIXED_P), 20_000, np.random.default_rng(0)))
    assert found.keys() == expected
    np.testing.assert_allclose(list(found.values()), 1 / 12, atol=0.01)


def test_half_samples_of_pairs_alone():
    pairs_P = np.tile(np.arange(1, 5), 2)
    expected = {tuple(prompt % 4 in two for prompt in range(8)) for two in combinations(range(4), 2)}
    found = rows(half_samples(half_unsafe(8), paired(half_unsafe(8), pairs_P), 6000, np.random.default_rng(1)))
    assert found.keys() == expected
    np.testing.assert_allclose(list(found.values()), 1 / 6, atol=0.02)


def test_half_of_each_arm_without_replacement():
    unsafe_P = np.arange(9) >= 4
    chosen_NP = half_samples(unsafe_P, paired(unsafe_P, np.zeros(9, int)), 500, np.random.default_rng(0))
    assert (chosen_NP[:, ~unsafe_P].sum(axis=1) == 2).all()
    assert (chosen_NP[:, unsafe_P].sum(axis=1) == 2).all()
    np.testing.assert_allclose(chosen_NP.mean(axis=0), [0.5] * 4 + [0.4] * 5, atol=0.08)


@pytest.mark.parametrize(
    ("unsafe_P", "strata_P"),
    [
        ([0, 1], [0, 0]),
        ([0, 1], [1, 1]),
        ([0, 0, 1, 1], [1, 0, 1, 0]),
        ([0, 0, 0, 1], [1, 0, 0, 1]),
        ([0, 0, 1, 1, 1], [0, 1, 1, 0, 0]),
        ([0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 0, 0]),
        ([0, 0, 0, 1], [0, 0, 0, 0]),
    ],
)
def test_no_arm_of_a_half_sample_is_empty_and_no_pair_is_split(unsafe_P, strata_P):
    unsafe_P, strata_P = np.array(unsafe_P) == 1, np.array(strata_P)
    chosen_NP = half_samples(unsafe_P, paired(unsafe_P, strata_P), 50, np.random.default_rng(0))
    assert chosen_NP[:, unsafe_P].any(axis=1).all()
    assert chosen_NP[:, ~unsafe_P].any(axis=1).all()
    of_pair_NP = chosen_NP[:, strata_P == 1]
    assert (of_pair_NP.all(axis=1) | ~of_pair_NP.any(axis=1)).all()
