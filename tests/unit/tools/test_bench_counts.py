"""The counted goals of the benchmark: by hand, and what ours has done on two ranks."""

from __future__ import annotations

import os
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch

from dist_moe.parallel.comm import GroupComm
from tests.ranks.harness import run_ranks
from tools.bench.memory import Parts, bytes_outside, optimizer_goal, owned_goal, peak_goal, storage_bytes
from tools.bench.ours import OurStep
from tools.bench.pairs import bytes_of_pairs, pairs_BLE, sent_goal, tokens_goal
from tools.bench.processes import on_ranks
from tools.bench.rank_contenders import NATIVE, absent
from tools.bench.rank_counts import Counted, count
from tools.bench.setup import SMALL, Mode, Options, Setup

PARTS = Parts(weights=1000, gradients=40, state=160, num_owned=20)


def test_bytes_of_pairs_by_hand() -> None:
    """Rank 0 has experts 0 and 1. Layer 0: 2 + 3 pairs go to another rank, layer 1: 4 + 5, layer 2: 1 + 1. Layer 1 is
    the first that trains: there and back in each layer, a gradient there from layer 1 on, and back above it."""
    owner_LE = torch.tensor([[0, 0, 1]] * 3)
    pairs_RLE = torch.tensor([[[9, 9, 2], [9, 9, 4], [9, 9, 1]], [[1, 2, 9], [0, 5, 9], [1, 0, 9]]])
    trained_L = torch.tensor([False, True, False])
    assert bytes_of_pairs(pairs_RLE, owner_LE, trained_L, row_bytes=8) == 8 * (2 * 5 + 3 * 9 + 4 * 2)
    assert [sent_goal("", sent, 360).verdict for sent in (360, 361)] == ["PASS (goal 1)", "SHORT (goal 1)"]


def test_balance_of_rows_by_hand() -> None:
    """Two batches on two ranks: 60 and 40 rows, then 50 and 50. Dealt anew 55 and 45 (30 + 25, 25 + 20), and as before;
    the largest expert is below half of the rows."""
    owner_LE, pairs = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[[30, 30, 20, 20]], [[25, 25, 25, 25]]])
    goal = tokens_goal("row", pairs, owner_LE, 2)
    assert goal.value == pytest.approx((1.2 + 1.0) / 2)
    assert goal.verdict == "PASS (goal 1.1)"
    assert goal.reason == (
        "by batch 1.200, 1.000; with each batch's experts dealt anew by their rows 1.000; no assignment is below "
        "1.000, because of the largest expert"
    )
    one_has_most = tokens_goal("row", torch.tensor([[[80, 10, 5, 5]]]), owner_LE, 2)
    assert one_has_most.value == pytest.approx(1.8)
    assert one_has_most.reason.endswith("rows 1.600; no assignment is below 1.600, because of the largest expert")


def test_memory_goals_by_hand() -> None:
    """The floor's peak of 1500 has 300 beside its weights, gradients and state: the limit is 1000 + 16 * 20 + 300."""
    goal = peak_goal("row", 1700, PARTS, 1500, PARTS)
    assert goal.value == pytest.approx(1700 / 1620)
    assert goal.verdict == "PASS (goal 1.05)"
    assert peak_goal("row", 1702, PARTS, 1500, PARTS).is_short
    assert optimizer_goal("row", [PARTS, PARTS], 40, is_fp32=True).verdict == "PASS (goal 8)"
    assert optimizer_goal("row", [PARTS, PARTS], 39, is_fp32=True).is_short
    assert not optimizer_goal("row", [PARTS, PARTS], 39, is_fp32=False).is_short
    assert owned_goal("row", [PARTS, replace(PARTS, num_owned=24)]).value == pytest.approx(24 / 22)


def test_memory_in_common_counts_once() -> None:
    whole = torch.zeros(10, 4)
    assert storage_bytes([whole, whole[2:], torch.zeros(3)]) == 160 + 12
    assert bytes_outside([whole[1], torch.zeros(3)], [whole]) == 12


@pytest.mark.parametrize("mode", ["update", "route"])
def test_pairs_of_plain_routing_are_the_rows_that_our_experts_get(mode: Mode) -> None:
    setup = Setup(SMALL)
    found = pairs_BLE(setup, mode)
    for batch in range(SMALL.batches):
        ours = OurStep(setup, mode)
        ours(batch)
        rows_LE = torch.stack([layer.received_S[: SMALL.experts] for layer in ours.step.model.layers])
        assert torch.equal(rows_LE, found[batch])
    assert found.sum() > 0


def cores(comm: GroupComm) -> set[int]:
    """Also those of a thread that is started later, as torch's are."""
    found: list[set[int]] = []
    thread = Thread(target=lambda: found.append(os.sched_getaffinity(0)))
    thread.start()
    thread.join()
    assert found[0] == os.sched_getaffinity(0)
    return found[0]


@pytest.mark.long
def test_ranks_do_not_share_cores_where_there_are_enough() -> None:
    there = os.sched_getaffinity(0)
    assert len(there) >= 2
    first, second = on_ranks(2, 1, cores)
    assert len(first) == len(second) == 1
    assert first != second
    assert first | second <= there
    assert on_ranks(2, len(there), cores) == [there, there]


def both_modes(comm: GroupComm, options: Options) -> list[Counted]:
    return [count(comm, options, mode) for mode in ("update", "route")]


@pytest.mark.long
@pytest.mark.parametrize(("dtype", "state_bytes"), [("float32", 8), ("bfloat16", 12)])
def test_what_is_counted_on_two_ranks(dtype: str, state_bytes: int) -> None:
    """State of each expert of the union once, on the rank that has it, and of nothing else. All weights are there, the
    experts' on one rank, the dense ones on both; the floor has all."""
    options = replace(SMALL, dtype=dtype)
    expert, union_LE = 3 * SMALL.hidden * SMALL.intermediate, Setup(SMALL).masks_BLE.any(0).numpy()
    every, item = SMALL.layers * SMALL.experts, getattr(torch, dtype).itemsize
    for ranks in zip(*run_ranks(2, both_modes, options), strict=True):
        assert (np.stack([rank.held_LE for rank in ranks]).sum(0) == 1).all()
        for rank in ranks:
            assert rank.ours.num_owned == expert * int((rank.held_LE & union_LE).sum())
            assert rank.ours.state == state_bytes * rank.ours.num_owned
            assert rank.floor.num_owned == expert * int(union_LE.sum())
            assert rank.floor.weights - rank.ours.weights == every // 2 * expert * item
            assert rank.sent > 0


def test_a_peer_that_transformers_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from tools.bench import rank_peers  # imports deepspeed

    def without_ep_size(tp_size: int | None = None) -> None: ...

    def with_ep_size(ep_size: int | None = None) -> None: ...

    monkeypatch.setattr(rank_peers, "DistributedConfig", with_ep_size)
    assert absent() == {}
    monkeypatch.setattr(rank_peers, "DistributedConfig", without_ep_size)
    monkeypatch.setattr(rank_peers.transformers, "__version__", "5.17.0")
    assert absent() == {NATIVE: "transformers 5.17.0 has none (its DistributedConfig has no ep_size)"}
