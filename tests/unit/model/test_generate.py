"""Routing of the model's own answers, against transformers alone: generate, then a recount of each token's routing."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dist_moe.data.tokens import Encoded
from dist_moe.measure.collect import count_rows
from dist_moe.model.generate import Sampling
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import SoloComm
from tests.tiny import VOCAB, E, K, L, tiny_model

CPU = SoloComm(torch.device("cpu"))
EOS, NEW = 7, 12


def prompts(num=6):
    generator = torch.Generator().manual_seed(5)
    lengths = [3, 11, 5, 5, 8, 4, 9][:num]
    return [Encoded(tuple(torch.randint(8, VOCAB, (n,), generator=generator).tolist()), ()) for n in lengths]


def likes_to_end(model):
    """Make the end token likely enough that some answers end early and some do not."""
    with torch.no_grad():
        model.lm_head.weight[EOS] = 2.5 * model.lm_head.weight[9]
    return model


def count(rows, *, temperature=0.0, seed=0, budget=10_000, eos=(EOS,), family="mixtral"):
    model = adopt(likes_to_end(tiny_model(family)), CPU)
    sampling = Sampling(max_new_tokens=NEW, temperature=temperature, seed=seed, eos_ids=eos)
    return count_rows(model, rows, tokens=sampling, micro_batch_tokens=budget, pad_id=0, comm=CPU)


@torch.no_grad()
def recount(row, family):
    """One prompt without padding or cache: the answer token by token, then each token's top-k by router logits."""
    model, ids = likes_to_end(tiny_model(family)), list(row.prompt_ids)
    while len(ids) < len(row.prompt_ids) + NEW and (len(ids) == len(row.prompt_ids) or ids[-1] != EOS):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    out = model(torch.tensor([ids]), output_router_logits=True, use_cache=False)
    counts_LE = np.zeros((L, E), np.int64)
    for layer, logits_TE in enumerate(out.router_logits):
        for token in range(len(row.prompt_ids), len(ids) - 1):
            counts_LE[layer, logits_TE[token].topk(K).indices.numpy()] += 1
    return counts_LE, len(ids) - 1 - len(row.prompt_ids)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_counts_are_those_of_every_generated_token_but_the_last(family):
    rows = prompts()
    counts = count(rows, family=family)
    lengths = set()
    for i, row in enumerate(rows):
        expected_LE, num_tokens = recount(row, family)
        assert counts.tokens_P[i] == num_tokens
        assert (counts.counts_PLE[i] == expected_LE).all()
        lengths.add(num_tokens)
    assert len(lengths) > 1, "all answers have one length: nothing about ends was tested"
    assert counts.counts_PLE.sum(axis=2).tolist() == [[K * n] * L for n in counts.tokens_P.tolist()]


def test_answers_are_drawn_from_the_seed_alone():
    rows = prompts()
    torch.manual_seed(1)
    first = count(rows, temperature=1.0, seed=3)
    torch.manual_seed(2)
    second, other = count(rows, temperature=1.0, seed=3), count(rows, temperature=1.0, seed=4)
    assert (first.counts_PLE == second.counts_PLE).all()
    assert not (first.counts_PLE == other.counts_PLE).all()
    assert not (first.counts_PLE == count(rows).counts_PLE).all()
    model = adopt(tiny_model("mixtral"), CPU)
    state = torch.random.get_rng_state()
    sampling = Sampling(max_new_tokens=3, temperature=1.0, seed=0, eos_ids=())
    count_rows(model, rows, tokens=sampling, micro_batch_tokens=100, pad_id=0, comm=CPU)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_small_micro_batches_give_the_same_counts_in_the_users_order():
    rows = prompts()
    whole, parts = count(rows), count(rows, budget=2 * (NEW + 8))
    assert (whole.counts_PLE == parts.counts_PLE).all()
    backwards = count(rows[::-1])
    assert (whole.counts_PLE == backwards.counts_PLE[::-1]).all()


def test_a_pass_is_as_long_as_what_inference_is_given(monkeypatch):
    """Which may have more tokens than what stands before the answer when the whole row is read."""
    model, widths = adopt(tiny_model("mixtral"), CPU), []
    generate = model.module.generate
    monkeypatch.setattr(model.module, "generate", lambda ids, **how: widths.append(ids.shape) or generate(ids, **how))
    rows = [replace(row, alone_ids=row.prompt_ids + (9,) * 20) for row in prompts()]
    sampling, budget = Sampling(max_new_tokens=NEW, temperature=0.0, seed=0, eos_ids=()), 2 * (NEW + 31)
    count_rows(model, rows, tokens=sampling, micro_batch_tokens=budget, pad_id=0, comm=CPU)
    assert sum(num_rows for num_rows, _ in widths) == len(rows)
    assert max(num_rows for num_rows, _ in widths) == 2
    assert all(num_rows * (width + NEW) <= budget for num_rows, width in widths)


def test_prompts_are_counted_apart_as_they_are_without_an_answer():
    rows = prompts()
    tables = count(rows).tables
    model = adopt(likes_to_end(tiny_model("mixtral")), CPU)
    read = count_rows(model, rows, tokens="prompt", micro_batch_tokens=10_000, pad_id=0, comm=CPU)
    assert (tables["prefill_counts"] == read.counts_PLE).all()
    assert tables["prefill_tokens"].tolist() == [len(row.prompt_ids) for row in rows]


def test_one_new_token_is_read_by_no_pass():
    model = adopt(tiny_model("mixtral"), CPU)
    sampling = Sampling(max_new_tokens=1, temperature=0.0, seed=0, eos_ids=())
    counts = count_rows(model, prompts(), tokens=sampling, micro_batch_tokens=100, pad_id=0, comm=CPU)
    assert not counts.tokens_P.any()
    assert not counts.counts_PLE.any()
