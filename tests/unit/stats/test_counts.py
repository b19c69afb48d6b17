import numpy as np
import pytest

from dist_moe.stats.counts import RoutingCounts, concatenate


def counts(counts_PLE, tokens_P, experts_per_token=2):
    return RoutingCounts(np.array(counts_PLE), np.array(tokens_P), experts_per_token)


THREE = counts([[[3, 1, 2]], [[0, 4, 4]], [[1, 1, 0]]], [3, 4, 1])


@pytest.mark.parametrize("rows", [[0, 2], np.array([True, False, True])])
def test_pooled_sums_the_given_prompts(rows):
    pooled = THREE.pooled(rows)
    assert pooled.counts_PLE.tolist() == [[[4, 2, 2]]]
    assert pooled.tokens_P.tolist() == [4]
    assert pooled.experts_per_token == 2


def test_pooled_over_no_prompt_is_zero():
    pooled = THREE.pooled([])
    assert pooled.counts_PLE.tolist() == [[[0, 0, 0]]]
    assert pooled.tokens_P.tolist() == [0]


def test_concatenate_keeps_the_order():
    both = concatenate([THREE.pooled([1]), THREE])
    assert both.counts_PLE[:, 0].tolist() == [[0, 4, 4], [3, 1, 2], [0, 4, 4], [1, 1, 0]]
    assert both.tokens_P.tolist() == [4, 3, 4, 1]


def test_tables_go_with_their_prompts():
    tables = {"gates": np.arange(9.0).reshape(3, 1, 3), "lengths": np.array([7, 8, 9])}
    measured = RoutingCounts(THREE.counts_PLE, THREE.tokens_P, 2, tables)
    assert (measured.of(np.array([2, 0])).tables["gates"] == tables["gates"][[2, 0]]).all()
    assert measured.of(slice(1, 3)).tokens_P.tolist() == [4, 1]
    both = concatenate([measured, measured.of(slice(1))])
    assert (both.tables["gates"] == tables["gates"][[0, 1, 2, 0]]).all()
    assert both.tables["lengths"].tolist() == [7, 8, 9, 7]
    with pytest.raises(ValueError, match="too many"):
        concatenate([measured, THREE])


@pytest.mark.parametrize(
    ("counts_PLE", "tokens_P"),
    [
        ([[[3, 2, 2]]], [3]),  # 7 slots of 3 tokens with k = 2
        ([[[4, 1, 1]]], [3]),  # one expert 4 times in 3 tokens
        ([[[-1, 1, 1]]], [3]),
        ([[[1, 1, 1]]], [3, 3]),
        ([[1, 1, 1]], [3]),
        ([[[1.0, 1.0, 1.0]]], [3]),
    ],
)
def test_impossible_counts_are_a_bug(counts_PLE, tokens_P):
    with pytest.raises(AssertionError):
        counts(counts_PLE, tokens_P)
