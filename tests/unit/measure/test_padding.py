"""Counts of rows that share passes are those of plain transformers for each row alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dist_moe.data.tokens import Encoded
from dist_moe.measure.collect import count_rows
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import SoloComm
from tests.plain import routed
from tests.tiers import by_family
from tests.tiny import CONFIGS, VOCAB, tiny_model

CPU = SoloComm(torch.device("cpu"))


def random_rows(generator: np.random.Generator) -> list[Encoded]:
    """Of any length from 1 to 40, some without a response; the padding's id is among theirs."""
    rows = []
    for _ in range(generator.integers(2, 12)):
        ids = generator.integers(0, VOCAB, generator.integers(1, 41)).tolist()
        cut = int(generator.integers(1, len(ids) + 1))
        rows.append(Encoded(tuple(ids[:cut]), tuple(ids[cut:])))
    return rows


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("family", by_family(sorted(CONFIGS)))
def test_rows_of_random_lengths_count_as_they_do_alone(family: str, seed: int) -> None:
    generator = np.random.default_rng(seed)
    rows, plain, model = random_rows(generator), tiny_model(family), adopt(tiny_model(family), CPU)
    alone = [routed(plain, row.prompt_ids + row.response_ids) for row in rows]
    budget = int(generator.integers(80, 500)) if seed else 10_000  # which all rows share
    settings = {"micro_batch_tokens": budget, "pad_id": int(generator.integers(0, VOCAB))}
    for tokens in ("all", "prompt", "completion"):
        found = count_rows(model, rows, tokens=tokens, comm=CPU, **settings)  # type: ignore[arg-type]
        for i, (row, chosen_TLE) in enumerate(zip(rows, alone, strict=True)):
            split = len(row.prompt_ids)
            part = {"all": slice(None), "prompt": slice(split), "completion": slice(split, None)}[tokens]
            assert (found.counts_PLE[i] == chosen_TLE[part].sum(0)).all(), (tokens, settings)
            assert found.tokens_P[i] == len(chosen_TLE[part])


def test_without_passes_of_their_own_rows_of_an_indexer_would_count_otherwise() -> None:
    """So the tests of deepseek_v32 are about something."""
    rows, model = random_rows(np.random.default_rng(0)), adopt(tiny_model("deepseek_v32"), CPU)
    assert model.rows_alone
    alone, together = (
        count_rows(model, rows, tokens="all", micro_batch_tokens=10_000, pad_id=0, comm=CPU).counts_PLE
        for model.rows_alone in (True, False)
    )
    assert (alone != together).any()
