"""At 256 and 1,024 ranks a plan has the sizes and the exchanges that one of them has."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.planned import exchanges_of_many, on_fake_group

MODELS = [
    ("gpt-oss-120b", 256, 32),
    pytest.param("gpt-oss-120b", 1024, 128, marks=pytest.mark.long),
    pytest.param("qwen3-235b-a22b", 256, 64, marks=pytest.mark.long),
    pytest.param("deepseek-v3", 1024, 256, marks=pytest.mark.long),
    pytest.param("kimi-k2", 1024, 128, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("name", "num_ranks", "ep_size"), MODELS)
def test_a_rank_of_many_has_the_planned_sizes(name, num_ranks, ep_size):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        planned, taken = pool.submit(on_fake_group, name, num_ranks, ep_size).result(timeout=240)
    assert {part: getattr(planned, part) for part in taken} == taken


@pytest.mark.parametrize(
    "more", [{}, {"checkpointing": True}, {"mode": "route", "share": 0.3}, {"micro_batch_size": 1}], ids=str
)
def test_exchanges_of_tokens_are_as_planned(more):
    calls, planned = exchanges_of_many(4, 4, **more)
    assert calls["tokens"] == planned


def test_their_number_does_not_grow_with_ranks():
    found = [exchanges_of_many(num_ranks, 8)[0] for num_ranks in (16, 256, 1024)]
    assert found[0] == found[1] == found[2]
    assert found[0]["experts"] == 2
