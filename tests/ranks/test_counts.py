"""Routing counts of several ranks are those of one, whatever is counted, and so are the bits of gates and gradients."""

import pytest

from dist_moe.analysis.collect import count_rows
from dist_moe.analysis.generate import Sampling
from dist_moe.moe.model import adopt
from dist_moe.parallel.comm import SoloComm
from tests.ranks.harness import run_ranks
from tests.ranks.test_training import batch_rows
from tests.tiny import tiny_model

SAMPLED = Sampling(max_new_tokens=6, temperature=1.0, seed=2, eos_ids=(5, 9))
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
