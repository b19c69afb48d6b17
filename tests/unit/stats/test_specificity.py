from itertools import permutations

import numpy as np
import pytest

from dist_moe.stats import specificity
from dist_moe.stats.specificity import category_specificity, union_growth

CATEGORIES = ("a", "a", "b", "b")
MASKS_BLE = np.array([[[1, 1, 0, 0]], [[1, 1, 1, 0]], [[0, 0, 1, 1]], [[0, 0, 0, 1]]], bool)


def test_means_by_hand():
    found = category_specificity(MASKS_BLE, CATEGORIES, 10, np.random.default_rng(0))
    assert found.within == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.between == pytest.approx((0 + 0 + 1 / 4 + 0) / 4)


def test_p_is_the_share_of_shuffled_categories():
    # of the 3 ways to split 4 batches into pairs, only the real one has this much: p tends to 1/3
    found = category_specificity(MASKS_BLE, CATEGORIES, 3000, np.random.default_rng(0))
    assert found.p == pytest.approx(1 / 3, abs=0.03)


def test_p_of_few_shuffles_is_never_0():
    masks_BLE = np.repeat(MASKS_BLE, 4, axis=0)
    assert (
        category_specificity(masks_BLE, [c for c in CATEGORIES for _ in range(4)], 9, np.random.default_rng(0)).p == 0.1
    )


def test_categories_that_share_nothing_are_told_from_noise():
    generator = np.random.default_rng(0)
    categories = [name for name in "abc" for _ in range(5)]
    likely_CX = np.repeat(np.where(generator.random((3, 60)) < 0.2, 0.8, 0.05), 5, axis=0)
    masks_BLE = (generator.random((15, 60)) < likely_CX).reshape(15, 3, 20)
    assert category_specificity(masks_BLE, categories, 200, generator).p < 0.01
    shuffled = generator.permutation(categories)
    assert category_specificity(masks_BLE, shuffled, 200, generator).p > 0.05


def test_of_more_batches_some_are_compared_and_their_means_are_those_of_all(monkeypatch):
    generator = np.random.default_rng(0)
    categories = [name for name in "abc" for _ in range(100)]
    likely_CX = np.repeat(np.where(generator.random((3, 60)) < 0.2, 0.8, 0.05), 100, axis=0)
    masks_BLE = (generator.random((300, 60)) < likely_CX).reshape(300, 3, 20)
    whole = category_specificity(masks_BLE, categories, 50, np.random.default_rng(0))
    monkeypatch.setattr(specificity, "MOST_BATCHES", 100)
    some = category_specificity(masks_BLE, categories, 50, np.random.default_rng(0))
    assert (whole.num_batches, some.num_batches) == (300, 100)
    assert (some.within, some.between) == pytest.approx((whole.within, whole.between), abs=0.02)
    assert some.within - some.between > 0.1
    assert some.p == whole.p == 1 / 51
    shuffled = np.random.default_rng(1).permutation(categories)
    assert category_specificity(masks_BLE, shuffled, 200, np.random.default_rng(0)).p > 0.05


@pytest.mark.parametrize("categories", [("a",) * 4, ("a", "b", "c", "d")])
def test_without_pairs_of_both_kinds_there_is_no_answer(categories):
    assert category_specificity(MASKS_BLE, categories, 10, np.random.default_rng(0)) is None


def test_union_growth_is_that_of_all_orders():
    masks_BLE = np.random.default_rng(0).random((6, 2, 9)) < np.linspace(0, 0.6, 9)
    assert not masks_BLE[..., 0].any()  # in no mask
    sizes_NB = [[masks_BLE[list(order[:n])].any(axis=0).sum() for n in range(1, 7)] for order in permutations(range(6))]
    growth = union_growth(masks_BLE)
    np.testing.assert_allclose(growth.mean_B, np.mean(sizes_NB, axis=0), rtol=1e-12)
    np.testing.assert_allclose(growth.deviation_B, np.std(sizes_NB, axis=0), rtol=1e-9, atol=1e-6)
    assert growth.deviation_B[-1] == 0


def test_union_growth_is_that_of_many_random_orders(monkeypatch):
    monkeypatch.setattr(specificity, "EXPERTS_AT_ONCE", 7)  # parts, the last of them shorter
    generator = np.random.default_rng(1)
    masks_BLE = generator.random((40, 3, 20)) < generator.random((3, 20)) ** 3
    num_orders = 4000
    sizes_NB = np.empty((num_orders, 40))
    for sizes_B in sizes_NB:
        seen_BLE = np.logical_or.accumulate(masks_BLE[generator.permutation(40)], axis=0)
        sizes_B[:] = seen_BLE.sum(axis=(1, 2))
    growth = union_growth(masks_BLE)
    assert (np.abs(growth.mean_B - sizes_NB.mean(axis=0)) <= 5 * growth.deviation_B / np.sqrt(num_orders) + 1e-9).all()
    np.testing.assert_allclose(growth.deviation_B, sizes_NB.std(axis=0), rtol=0.07, atol=0.03)


def test_empty_masks_have_an_empty_union():
    growth = union_growth(np.zeros((3, 2, 2), bool))
    assert growth.mean_B.tolist() == growth.deviation_B.tolist() == [0, 0, 0]


def test_masks_that_are_alike_grow_no_further():
    growth = union_growth(np.tile(MASKS_BLE[:1], (2000, 1, 1)))
    assert growth.mean_B.tolist() == [2] * 2000
    assert growth.deviation_B.tolist() == [0] * 2000


@pytest.mark.parametrize("seed", range(4))
def test_shuffles_are_those_of_the_categories_themselves(seed):
    """Against means over all pairs that are masked anew for each shuffle, on the same draws."""
    generator = np.random.default_rng(seed)
    masks_BLE = generator.random((17, 2, 9)) < 0.4
    categories = generator.choice(["a", "b", "c"], 17)
    one, other = np.triu_indices(17, k=1)
    jaccard_Q = specificity.jaccard_matrix(masks_BLE)[one, other]

    def difference(names):
        same_Q = names[one] == names[other]
        return jaccard_Q[same_Q].mean() - jaccard_Q[~same_Q].mean()

    draws = np.random.default_rng([seed, 1])
    reached = sum(difference(draws.permutation(categories)) >= difference(categories) - 1e-12 for _ in range(200))
    found = category_specificity(masks_BLE, list(categories), 200, np.random.default_rng([seed, 1]))
    assert found.p == (1 + reached) / 201
    assert found.p > 0.02
    assert found.within - found.between == difference(categories)
