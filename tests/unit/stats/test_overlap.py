import numpy as np
import pytest

from dist_moe.stats.overlap import category_experts, expert_history, jaccard_matrix, shared_experts

# Four batches of one layer with three experts.
MASKS_BLE = np.array([[[1, 1, 0]], [[0, 1, 1]], [[0, 0, 1]], [[0, 0, 0]]], bool)
CATEGORIES = ("hexes", "hexes", "heists", "taunts")


def test_jaccard_by_hand():
    expected = [[1, 1 / 3, 0, 0], [1 / 3, 1, 1 / 2, 0], [0, 1 / 2, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(jaccard_matrix(MASKS_BLE), expected)


def test_jaccard_against_sets():
    masks_BLE = np.random.default_rng(0).random((6, 4, 8)) < 0.3
    sets = [set(map(tuple, np.argwhere(mask))) for mask in masks_BLE]
    expected = [[len(a & b) / len(a | b) for b in sets] for a in sets]
    np.testing.assert_array_equal(jaccard_matrix(masks_BLE), expected)


def test_category_experts():
    table = category_experts(MASKS_BLE, CATEGORIES)
    assert table.columns.tolist() == ["category", "layer", "expert", "Layer_Expert", "num_batches", "share"]
    assert table.to_numpy().tolist() == [
        ["heists", 0, 2, "L00_E02", 1, 1.0],
        ["hexes", 0, 1, "L00_E01", 2, 1.0],
        ["hexes", 0, 0, "L00_E00", 1, 0.5],
        ["hexes", 0, 2, "L00_E02", 1, 0.5],
    ]


def test_shared_experts():
    table = shared_experts(category_experts(MASKS_BLE, CATEGORIES))
    assert table.to_dict(orient="records") == [
        {
            "layer": 0,
            "expert": 2,
            "Layer_Expert": "L00_E02",
            "num_categories": 2,
            "categories": "heists, hexes",
            "num_batches": 2,
        }
    ]


def test_shared_experts_come_with_most_categories_first():
    masks_BLE = np.array([[[1, 1, 1, 1]], [[1, 1, 1, 1]], [[0, 0, 1, 1]], [[0, 1, 0, 0]]], bool)
    table = shared_experts(category_experts(masks_BLE, ("a", "b", "c", "a")))
    assert table[["expert", "num_categories", "num_batches"]].to_numpy().tolist() == [
        [2, 3, 3],
        [3, 3, 3],
        [1, 2, 3],
        [0, 2, 2],
    ]


def test_no_expert_is_shared():
    assert shared_experts(category_experts(MASKS_BLE[2:], CATEGORIES[2:])).empty


def test_history():
    table = expert_history(np.array([True, False]), np.array([0.25, 0.5]), np.array([0.75, 0.25]), ("a", "b"))
    assert table.to_dict(orient="list") == {
        "batch": [0, 1],
        "category": ["a", "b"],
        "selected": [True, False],
        "a_safe_n": [0.25, 0.5],
        "a_unsafe_n": [0.75, 0.25],
        "risk_diff": [pytest.approx(0.5), -0.25],
    }
