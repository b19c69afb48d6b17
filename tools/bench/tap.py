"""Forward passes with counting against ones without."""

from __future__ import annotations

import torch

from tools.bench.setup import Setup
from tools.bench.timing import Comparison, Contender

PASSES = 4
"""Of a round: one is short beside what else a machine does."""


def bench_tap(setup: Setup) -> list[Comparison]:
    model = setup.our_model()

    @torch.no_grad()
    def silent(i: int) -> torch.Tensor:
        return model.module(input_ids=setup.batch(i).input_ids, use_cache=False).logits

    def counting(i: int) -> torch.Tensor:
        with torch.no_grad(), model.tap.count(setup.batch(i).live, gates=True) as tally:
            silent(i)
        return tally.counts_RLE

    silent(0)
    counts_RLE = counting(0)
    num_routed = setup.batch(0).live.sum() * setup.options.top_k
    assert (counts_RLE.sum((0, 2)) == num_routed).all(), "the tap missed a token"

    def several(one: Contender) -> Contender:
        return lambda i: [one(i) for _ in range(PASSES)]

    contenders = {"ours": several(counting), "not counting": several(silent)}
    return setup.compare(f"{PASSES} forward passes, counting", contenders, {"not counting": 1.02})
