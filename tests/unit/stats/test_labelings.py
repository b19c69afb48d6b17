from itertools import permutations

import numpy as np

from dist_moe.stats.labelings import labelings, num_labelings
from tests.unit.stats.prompts import half_unsafe, paired

NO_PAIRS = np.zeros(6, np.int64)


def test_all_labelings_where_they_can_be_listed():
    labels_NP, exact = labelings(half_unsafe(6), paired(half_unsafe(6), NO_PAIRS), 20, np.random.default_rng(0))
    assert exact
    assert set(map(tuple, labels_NP)) == set(permutations([False] * 3 + [True] * 3))
    assert len(labels_NP) == num_labelings(half_unsafe(6), paired(half_unsafe(6), NO_PAIRS)) == 20


def test_pairs_swap_among_themselves_only():
    strata_P = np.array([1, 2, 0, 1, 2, 0])
    labels_NP, exact = labelings(half_unsafe(6), paired(half_unsafe(6), strata_P), 100, np.random.default_rng(0))
    assert exact
    assert len(set(map(tuple, labels_NP))) == len(labels_NP) == 8
    assert (labels_NP[:, :3] != labels_NP[:, 3:]).all()


def test_drawn_labelings_are_uniform_and_keep_the_arms_sizes():
    labels_NP, exact = labelings(half_unsafe(6), paired(half_unsafe(6), NO_PAIRS), 19, np.random.default_rng(0))
    assert not exact
    assert labels_NP.shape == (19, 6)
    labels_NP, _ = labelings(
        half_unsafe(16), paired(half_unsafe(16), np.zeros(16, int)), 4000, np.random.default_rng(0)
    )
    assert (labels_NP.sum(axis=1) == 8).all()
    np.testing.assert_allclose(labels_NP.mean(axis=0), 0.5, atol=0.04)
    assert abs((labels_NP[:, 0] & labels_NP[:, 15]).mean() - 8 / 16 * 7 / 15) < 0.03


def test_drawn_labelings_of_pairs():
    strata_P = np.tile(np.arange(1, 9), 2)
    labels_NP, exact = labelings(half_unsafe(16), paired(half_unsafe(16), strata_P), 255, np.random.default_rng(0))
    assert not exact
    assert (labels_NP[:, :8] != labels_NP[:, 8:]).all()
    assert num_labelings(half_unsafe(16), paired(half_unsafe(16), strata_P)) == 2**8
