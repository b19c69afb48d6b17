"""Routing counts against a NumPy recount of the router logits that transformers itself records."""

import numpy as np
import pytest
import torch

from dist_moe.model.model import adopt
from dist_moe.parallel.comm import SoloComm
from tests.tiny import FAMILIES, E, K, L, tiny_model, token_ids

CPU = SoloComm(torch.device("cpu"))


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_equal_a_recount_of_router_logits(family):
    reference, ids = tiny_model(family), token_ids(5, rows=3, length=9)
    with torch.no_grad():
        logits = reference(input_ids=ids, output_router_logits=True, use_cache=False).router_logits
    counted = torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    expected = np.zeros((3, L, E), np.int64)
    for layer in range(L):
        scores = logits[layer].reshape(3, 9, E).numpy()
        for row in range(3):
            for token in range(9):
                if counted[row, token]:
                    expected[row, layer, np.argsort(-scores[row, token], kind="stable")[:K]] += 1
    model = adopt(tiny_model(family), CPU)
    with torch.no_grad(), model.tap.count(counted) as tally:
        model.module(input_ids=ids, use_cache=False)
    np.testing.assert_array_equal(tally.counts_RLE.numpy(), expected)
    assert tally.gates_RLE is None
    assert tally.counts_RLE.sum() == counted.sum() * L * K


def test_gate_sums_equal_a_recount_of_router_logits():
    """qwen3_moe: softmax over all experts, the k largest, divided by their sum."""
    reference, ids = tiny_model("qwen3_moe"), token_ids(5, rows=3, length=9)
    with torch.no_grad():
        logits = reference(input_ids=ids, output_router_logits=True, use_cache=False).router_logits
    counted = torch.rand(3, 9, generator=torch.Generator().manual_seed(0)) < 0.6
    expected = np.zeros((3, L, E))
    for layer in range(L):
        scores = np.exp(logits[layer].reshape(3, 9, E).double().numpy())
        for row, token in np.argwhere(counted.numpy()):
            chosen = np.argsort(-scores[row, token], kind="stable")[:K]
            weights = scores[row, token, chosen]
            if reference.config.norm_topk_prob:
                weights = weights / weights.sum()
            else:
                weights = weights / scores[row, token].sum()
            expected[row, layer, chosen] += weights
    model = adopt(tiny_model("qwen3_moe"), CPU)
    with torch.no_grad(), model.tap.count(counted, gates=True) as tally:
        model.module(input_ids=ids, use_cache=False)
    np.testing.assert_allclose(tally.gates_RLE.numpy() * 2.0**-30, expected, atol=1e-5)
    assert ((tally.gates_RLE > 0) == (tally.counts_RLE > 0)).all()


def test_passes_are_added_to_the_rows_that_they_name():
    model, ids = adopt(tiny_model("mixtral"), CPU), token_ids(2, rows=2, length=6)
    everything = torch.ones(ids.shape, dtype=torch.bool)
    with torch.no_grad(), model.tap.count(everything) as once:
        model.module(input_ids=ids, use_cache=False)
    with torch.no_grad(), model.tap.count(everything, num_rows=5, first_row=3, gates=True) as tally:
        model.module(input_ids=ids, use_cache=False)
        for _ in range(2):
            model.tap.next_pass(everything)
            model.module(input_ids=ids, use_cache=False)
    assert torch.equal(tally.counts_RLE[3:], once.counts_RLE)
    assert torch.equal(tally.counts_RLE[:2], 2 * once.counts_RLE)
    assert torch.equal(tally.gates_RLE[:2], 2 * tally.gates_RLE[3:])
    assert not tally.counts_RLE[2].any()


def test_nothing_is_counted_outside_count():
    model, ids = adopt(tiny_model("olmoe"), CPU), token_ids(1)
    with torch.no_grad(), model.tap.count(torch.ones(ids.shape, dtype=torch.bool)) as tally:
        pass
    with torch.no_grad():
        model.module(input_ids=ids, use_cache=False)
    assert not tally.counts_RLE.any()


def test_counting_with_gradients_is_refused():
    model = adopt(tiny_model("olmoe"), CPU)
    with pytest.raises(AssertionError, match="no_grad"), model.tap.count(torch.ones(1, 1, dtype=torch.bool)):
        pass
