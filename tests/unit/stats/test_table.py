import numpy as np
import pytest

from dist_moe.errors import UserError
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.table import RateSums, RiskTable, arm_counts, pooled_risk, risk_table


def random_counts(rng, num_prompts, num_layers=3, num_experts=5, k=2):
    """Counts of real top-k choices, token by token."""
    tokens_P = rng.integers(1, 9, num_prompts)
    counts_PLE = np.zeros((num_prompts, num_layers, num_experts), np.int64)
    for prompt, num_tokens in enumerate(tokens_P):
        for _ in range(num_tokens):
            for layer in range(num_layers):
                counts_PLE[prompt, layer, rng.choice(num_experts, k, replace=False)] += 1
    return RoutingCounts(counts_PLE, tokens_P, k)


def slow_rates(counts, rows):
    """The definition, one prompt at a time: slots of the arm / tokens of the arm."""
    slots_LE = sum(counts.counts_PLE[row].astype(object) for row in rows)
    tokens = sum(int(counts.tokens_P[row]) for row in rows)
    return np.array([[slots / tokens for slots in layer] for layer in slots_LE])


def test_hand_computed():
    counts = RoutingCounts(
        np.array([[[2, 0, 2]], [[6, 6, 0]], [[1, 3, 4]], [[1, 1, 0]], [[0, 5, 5]]]), np.array([2, 6, 4, 1, 5]), 2
    )
    unsafe_P = np.array([False, False, True, True, False])
    # Batch 1's only unsafe prompt is the last but one.
    table = risk_table(counts, unsafe_P, np.array([0, 0, 0, 1, 1]), 2, ("x", "y"))
    assert table.a_safe_n_BLE.tolist() == [[[1.0, 0.75, 0.25]], [[0.0, 1.0, 1.0]]]
    assert table.a_unsafe_n_BLE.tolist() == [[[0.25, 0.75, 1.0]], [[1.0, 1.0, 0.0]]]
    assert table.risk_diff_BLE.tolist() == [[[-0.75, 0.0, 0.75]], [[1.0, 0.0, -1.0]]]


@pytest.mark.parametrize("seed", range(5))
def test_against_the_definition(seed):
    rng = np.random.default_rng(seed)
    counts = random_counts(rng, 24)
    batch_of_P = np.arange(24) % 3
    unsafe_P = np.arange(24) // 3 % 2 == 1
    shuffled = rng.permutation(24)
    batch_of_P, unsafe_P = batch_of_P[shuffled], unsafe_P[shuffled]
    table = risk_table(counts, unsafe_P, batch_of_P, 3, ("a", "b", "c"))
    for batch in range(3):
        safe = [row for row in range(24) if batch_of_P[row] == batch and not unsafe_P[row]]
        unsafe = [row for row in range(24) if batch_of_P[row] == batch and unsafe_P[row]]
        np.testing.assert_array_equal(table.a_safe_n_BLE[batch], slow_rates(counts, safe))
        np.testing.assert_array_equal(table.a_unsafe_n_BLE[batch], slow_rates(counts, unsafe))
    np.testing.assert_allclose(table.a_safe_n_BLE.sum(axis=2), 2)
    np.testing.assert_allclose(table.risk_diff_BLE.sum(axis=2), 0, atol=1e-12)
    assert table.risk_diff_BLE.dtype == np.float64


def test_bits_do_not_depend_on_the_order_of_prompts():
    rng = np.random.default_rng(0)
    counts = random_counts(rng, 40)
    unsafe_P, batch_of_P = np.arange(40) % 2 == 0, np.arange(40) // 20
    order = rng.permutation(40)
    reordered = RoutingCounts(counts.counts_PLE[order], counts.tokens_P[order], 2)
    one = risk_table(counts, unsafe_P, batch_of_P, 2, ("a", "b"))
    other = risk_table(reordered, unsafe_P[order], batch_of_P[order], 2, ("a", "b"))
    assert one.risk_diff_BLE.tobytes() == other.risk_diff_BLE.tobytes()


def test_pooled_weighs_tokens_and_mean_weighs_batches():
    # Expert 0: safe never; unsafe 1 of 1 token in batch 0, 0 of 9 in batch 1.
    counts = RoutingCounts(np.array([[[0, 1]], [[1, 0]], [[0, 9]], [[0, 9]]]), np.array([1, 1, 9, 9]), 1)
    unsafe_P = np.array([False, True, False, True])
    sums = RateSums(1, 2, 1)
    sums.add(*arm_counts(counts.counts_PLE, counts.tokens_P, unsafe_P, np.array([0, 0, 1, 1]), 2))
    assert sums.pooled().risk_diff_BLE.tolist() == [[[0.1, pytest.approx(-0.1)]]]
    assert sums.mean().risk_diff_BLE.tolist() == [[[0.5, -0.5]]]


def test_sums_over_batches_have_the_bits_of_all_at_once():
    rng = np.random.default_rng(3)
    counts = random_counts(rng, 90)
    unsafe_P, batch_of_P = np.arange(90) % 2 == 0, np.arange(90) // 6
    table = risk_table(counts, unsafe_P, batch_of_P, 15, ("x",) * 15)
    sums = RateSums(3, 5, 2)
    for first, last in ((0, 4), (4, 5), (5, 15)):
        rows = slice(6 * first, 6 * last)
        sums.add(
            *arm_counts(
                counts.counts_PLE[rows], counts.tokens_P[rows], unsafe_P[rows], batch_of_P[rows] - first, last - first
            )
        )
    pooled, mean = pooled_risk(counts, unsafe_P), sums.mean()
    assert sums.pooled().risk_diff_BLE.tobytes() == pooled.risk_diff_BLE.tobytes()
    for found, rates_BLE in ((mean.a_safe_n_BLE, table.a_safe_n_BLE), (mean.a_unsafe_n_BLE, table.a_unsafe_n_BLE)):
        assert found.tobytes() == rates_BLE.mean(axis=0).tobytes()


def test_the_first_batch_without_a_counted_token_is_known():
    sums = RateSums(1, 2, 1)
    for tokens_AB in ([[3], [3]], [[2, 2], [2, 0]], [[0], [1]]):
        sums.add(np.zeros((2, len(tokens_AB[0]), 1, 2), np.int64), np.array(tokens_AB))
    assert sums.empty == 2


@pytest.mark.parametrize(("unsafe_tokens", "arm"), [(0, "unsafe"), (3, "safe")])
def test_an_arm_without_a_counted_token_is_named(unsafe_tokens, arm):
    safe_tokens = 3 - unsafe_tokens
    tokens_P = np.array([5, 5, safe_tokens, unsafe_tokens])
    counts = RoutingCounts(tokens_P[:, None, None] * np.array([1, 0]), tokens_P, 1)
    names = ("batch 0 (hexes, 00aa)", "batch 1 (heists, 11bb)")
    with pytest.raises(UserError) as error:
        risk_table(counts, np.array([False, True] * 2), np.array([0, 0, 1, 1]), 2, names)
    assert str(error.value) == (
        f"batch 1 (heists, 11bb): its {arm} prompts have no counted token, so they have no rate: "
        "choose another analysis.tokens, or give these rows what it counts: a response, or with tokens: span a span"
    )


def test_all_prompts_of_one_label_have_no_pooled_rate():
    counts = RoutingCounts(np.array([[[1, 1]]]), np.array([1]), 2)
    with pytest.raises(UserError, match="all prompts: its unsafe prompts have no counted token"):
        pooled_risk(counts, np.array([False]))


def test_a_table_of_other_types_is_a_bug():
    with pytest.raises(AssertionError):
        RiskTable(np.zeros((1, 2, 3), np.float32), np.zeros((1, 2, 3), np.float32))
