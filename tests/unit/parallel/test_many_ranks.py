"""Eight and sixty-four ranks, as threads that exchange what processes would: what a step does on each of them."""

from collections import Counter

import pytest
import torch

from dist_moe.config.schema import TrainConfig
from tools.growth.ranks import steps
from tools.growth.threads import on_threads


@pytest.fixture(scope="module")
def taken():
    """By number of ranks, each rank's second step on the same 64 rows; replicas of up to 8 ranks."""
    settings = TrainConfig(mode="route")
    return {
        num_ranks: steps(num_ranks, min(num_ranks, 8), num_experts=64, num_rows=64, settings=settings)
        for num_ranks in (1, 8, 64)
    }


def test_many_ranks_train_what_one_does(taken):
    (one,) = taken[1]
    assert len(one.weights) == 2 * 16
    for ranks in (taken[8], taken[64]):
        for rank in ranks:
            assert rank.loss == pytest.approx(one.loss, rel=1e-6)
            for key, weights in rank.weights.items():
                torch.testing.assert_close(weights, one.weights[key], rtol=1e-4, atol=1e-6)
        assert set().union(*(rank.weights for rank in ranks)) == set(one.weights)


def test_the_collectives_of_a_step_are_as_many_on_many_ranks(taken):
    counts = {num_ranks: {frozenset(rank.collectives.items()) for rank in ranks} for num_ranks, ranks in taken.items()}
    assert counts[1] == {frozenset()}
    (eight,), (many,) = counts[8], counts[64]
    # with replicas, gradients go to the owners, and new weights come back by two exchanges
    assert Counter(dict(many)) - Counter(dict(eight)) == {"rows": 3}
    assert dict(eight)["counts"] <= 2  # one exchange a layer


def test_a_rank_holds_no_more_on_many_ranks(taken):
    (one,) = taken[1]
    of_expert = one.state_bytes // 32
    for num_ranks, most_owned in ((8, 4), (64, 1)):  # of 32 trained experts; on 64 ranks each has eight copies
        ranks = taken[num_ranks]
        assert {rank.bank_bytes for rank in ranks} == {one.bank_bytes // 8}
        assert sum(rank.state_bytes for rank in ranks) == one.state_bytes
        assert max(rank.state_bytes for rank in ranks) == most_owned * of_expert


def test_what_a_rank_sends_grows_with_its_own_rows_only(taken):
    """Tables of all experts, counts for each rank of the replica, and weights for each replica: 64 ranks have an eighth
    of the rows each."""
    most = {num_ranks: max(rank.bytes_sent for rank in taken[num_ranks]) for num_ranks in (8, 64)}
    assert most[64] < most[8]


@pytest.mark.parametrize("counts", [[1, *[0] * 7], [1, 1, 1, *[0] * 5], [3, 3, *[2] * 6], [0] * 8])
def test_no_rank_sends_its_rows_to_each_of_many_ranks(counts):
    rows = torch.arange(sum(counts) * 7.0).view(-1, 7)

    def work(mesh, calls, sent):
        mine = rows.split(counts)[mesh.replicas.rank]
        torch.testing.assert_close(mesh.replicas.gather_rows(mine, counts), rows, rtol=0, atol=0)
        return sent.total()

    most = max(on_threads(8, 1, work))
    assert most <= 2 * rows.nbytes


def test_an_error_on_one_thread_ends_all_and_is_told():
    def work(mesh, calls, sent):
        if mesh.world.rank == 2:
            raise ValueError("here")
        mesh.world.barrier()

    with pytest.raises(ValueError, match="here"):
        on_threads(4, 2, work)
