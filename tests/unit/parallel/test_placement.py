"""Placement: every expert in exactly one slot of one rank."""

import pytest
import torch

from dist_moe.parallel.placement import Placement


@pytest.mark.parametrize(("num_experts", "num_ranks"), [(8, 1), (8, 2), (8, 4), (8, 3), (64, 8)])
def test_contiguous_split_is_even_and_complete(num_experts, num_ranks):
    placement = Placement.contiguous(3, num_experts, num_ranks)
    for layer in range(3):
        held = [placement.local(layer, rank) for rank in range(num_ranks)]
        assert [e for part in held for e in part] == list(range(num_experts))
        assert max(map(len, held)) - min(map(len, held)) <= 1
        assert max(map(len, held)) == placement.num_slots
        for part in held:
            assert placement.slot_LE[layer, part].tolist() == list(range(len(part)))


def test_slots_of_any_owners_by_hand():
    placement = Placement.from_owners(torch.tensor([[1, 0, 1, 1, 0]]), 2)
    assert placement.slot_LE.tolist() == [[0, 0, 1, 2, 1]]
    assert placement.local(0, 1) == [0, 2, 3]
    assert placement.num_slots == 3
