"""The plan's memory is what a step takes on the fake GPU: within 15 % in all, and never less.

Its bytes are counted there by other code than the plan's, with real values and routing. The fake GPU is a device of its
own for torch, so it lives in a process of its own.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

import pytest

from dist_moe.planning.memory import LIMIT, Setup, training_memory
from dist_moe.planning.outline import known_model
from dist_moe.planning.share import assumed
from dist_moe.training import parts
from tests.planned import Case, on_cpu, on_fake_gpu

CASES = [
    Case("qwen3_moe"),
    Case("qwen3_moe", checkpointing=True),
    Case("gpt_oss", mode="route", micro_batch_size=2),
    Case("qwen3_moe", rows=8, length=192, answer=96, share=0.1, ragged=True),
    *(
        pytest.param(Case(family, **more), marks=pytest.mark.long)
        for family in ("qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss")
        for more in ({}, {"checkpointing": True}, {"mode": "route", "micro_batch_size": 2}, {"dtype": "bfloat16"})
    ),
]


@pytest.fixture(scope="module")
def child():
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield lambda case: pool.submit(on_fake_gpu, case).result(timeout=240)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_step_takes_what_is_planned(child, case):
    planned, taken = child(case)
    for part in ("weights", "gradients", "state"):
        assert getattr(planned, part) == taken[part], part
    most = 1.2 if case.family == "gpt_oss" else 1.15  # attention that is not fused peaks elsewhere than experts do
    assert 1.0 <= planned.total / taken["total"] <= most
    assert 1.0 <= planned.activations / taken["activations"] <= 2 * most - 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_mask_between_packed_rows_is_planned(dtype, checkpointing):
    """On a CPU, as the fake GPU has no attention in one operation."""
    packed = Case("qwen3_moe", dtype, rows=32, answer=16, checkpointing=checkpointing, packed=True)
    planned, taken = on_cpu(packed)
    assert planned.activations >= taken["activations"]
    planned_padded, taken_padded = on_cpu(replace(packed, packed=False))
    more = planned.activations - planned_padded.activations
    assert 1.0 <= more / (taken["activations"] - taken_padded["activations"]) <= 1.3


def test_logits_are_planned_for_the_tokens_that_are_trained():
    """Each takes its logit in bfloat16, a copy of it, and three numbers in float32."""
    outline = known_model("olmoe-1b-7b").outline
    every = Setup(num_ranks=1, ep_size=1, batch_size=4, row_tokens=128, answer_tokens=128, audits=False)
    share = assumed(outline.num_layers, outline.num_experts, 8, 1, 1, 1)
    planned = [training_memory(outline, replace(every, loss_tokens=num), share) for num in (None, 400)]
    fewer = planned[0].activations - planned[1].activations
    assert fewer == pytest.approx(1.15 * (4 * 128 - 400) * 50_304 * (2 + 2 + 12), rel=1e-6)


def test_the_limit_of_a_part_of_the_losses_is_that_of_training():
    assert LIMIT == parts.LIMIT
