from itertools import permutations

import numpy as np
import pytest

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


@pytest.mark.parametrize("categories", [("a",) * 4, ("a", "b", "c", "d")])
def test_without_pairs_of_both_kinds_there_is_no_answer(categories):
    assert category_specificity(MASKS_BLE, categories, 10, np.random.default_rng(0)) is None


def test_union_growth_over_all_orders():
    sizes_NB = [
        [MASKS_BLE[list(order[:n])].any(axis=0).sum() for n in (1, 2, 3, 4)] for order in permutations(range(4))
    ]
    growth = union_growth(MASKS_BLE, 3000, np.random.default_rng(0))
    np.testing.assert_allclose(growth.mean_B, np.mean(sizes_NB, axis=0), atol=0.05)
    assert growth.mean_B[-1] == growth.low_B[-1] == growth.high_B[-1] == 4
    assert (growth.low_B <= growth.mean_B).all()
    assert (growth.mean_B <= growth.high_B).all()
    assert growth.low_B[0] == 1
    assert growth.high_B[0] == 3


def test_empty_masks_have_an_empty_union():
    assert union_growth(np.zeros((3, 2, 2), bool), 5, np.random.default_rng(0)).mean_B.tolist() == [0, 0, 0]
