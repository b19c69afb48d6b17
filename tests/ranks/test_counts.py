"""Routing counts of several ranks are those of one, whatever is counted, and so are the bits of gates and gradients."""

import numpy as np
import pytest

from dist_moe.measure.collect import count_rows
from dist_moe.model.generate import Sampling
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from tests.ranks.harness import run_ranks
from tests.ranks.test_training import batch_rows
from tests.tiny import tiny_model

SAMPLED = Sampling(max_new_tokens=6, temperature=1.0, seed=2, eos_ids=(5, 9))
SHORT = Sampling(max_new_tokens=10, temperature=1.0, seed=2, eos_ids=tuple(range(0, 128, 4)))
"""Answers that end early; three micro-batches of 4, 4 and 1 of nine rows."""
WAYS = ("prompt", "completion", "all", SAMPLED)


def count_all(comm):
    model = adopt(tiny_model("qwen3_moe"), SoloComm(comm.device))
    settings = {"micro_batch_tokens": 60, "pad_id": 0, "comm": comm, "gates": True, "gradients": True}
    counts = [count_rows(model, batch_rows(0, 9), tokens=tokens, **settings) for tokens in WAYS]
    return [{"counts": c.counts_PLE, "tokens": c.tokens_P, **c.tables} for c in counts]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_counts_of_ranks_are_those_of_one(num_ranks):
    (expected,) = run_ranks(1, count_all)
    assert all(((each["gates"] > 0) == (each["counts"] > 0)).all() and each["counts"].any() for each in expected)
    assert [table.any() for table in expected[0]["gradients"]] == [row.unsafe for row in batch_rows(0, 9)]
    assert (expected[-1]["prefill_counts"] == expected[0]["counts"]).all()
    for answer in run_ranks(num_ranks, count_all):
        for found, right in zip(answer, expected, strict=True):
            assert found.keys() == right.keys()
            assert all((found[name] == values).all() for name, values in right.items())


def count_shared(comm, ep_size):
    mesh = Mesh.of(comm, ep_size)
    model = adopt(tiny_model("qwen3_moe"), mesh.ep)
    settings = {"micro_batch_tokens": 60, "pad_id": 0, "comm": comm, "gates": True}
    counts = [count_rows(model, batch_rows(0, 9), tokens=tokens, **settings) for tokens in ("all", SHORT)]
    return [{"counts": c.counts_PLE, "tokens": c.tokens_P, **c.tables} for c in counts]


@pytest.mark.parametrize(("num_ranks", "ep_size"), [(2, 2), (3, 3), (4, 2)])
def test_ranks_that_share_experts_count_what_one_does(num_ranks, ep_size):
    """Also where one has no micro-batch left, and where its answers have ended before those of the others."""
    (expected,) = run_ranks(1, count_shared, 1)
    lengths = expected[-1]["tokens"].tolist()
    assert len({max(lengths[:4]), max(lengths[4:8]), lengths[8]}) == 3, "the passes of all micro-batches end together"
    for answer in run_ranks(num_ranks, count_shared, ep_size):
        for found, right in zip(answer, expected, strict=True):
            assert found.keys() == right.keys()
            for name, values in right.items():
                if name == "gates":
                    np.testing.assert_allclose(found[name], values, rtol=2e-6, atol=1e-7)
                else:
                    assert (found[name] == values).all(), name
