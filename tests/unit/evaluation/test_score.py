"""Scores of rows that share passes are those of plain transformers on each row alone."""

import pytest
import torch

from dist_moe.data.batches import token_budget
from dist_moe.data.tokens import Encoded
from dist_moe.evaluation.score import Scorable, Subject, opening, score_rows
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import SoloComm
from tests.tiny import VOCAB, tiny_model

CPU = SoloComm(torch.device("cpu"))
EOS, NEW = 5, 6


def ids(seed, number):
    return tuple(torch.randint(6, VOCAB, (number,), generator=torch.Generator().manual_seed(seed)).tolist())


ROWS = [
    Encoded(ids(i, 3 + 5 * i % 11), ids(50 + i, i % 4) + ((EOS,) if i % 4 else ()), unsafe=i % 3 == 0) for i in range(9)
]
OPENINGS = [(Encoded(row.prompt_ids, (40, 41, 42)), Encoded(row.prompt_ids, (60,))) for row in ROWS]
NO_OPENINGS = [()] * len(ROWS)


@torch.no_grad()
def log_p(model, row):
    """[response, V] from which a row's response is predicted."""
    whole = [*row.prompt_ids, *row.response_ids]
    return (
        model(torch.tensor([whole]), use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1].double().log_softmax(-1)
    )


@torch.no_grad()
def greedy(model, row):
    written = []
    while len(written) < NEW and (not written or written[-1] != EOS):
        whole = torch.tensor([[*row.prompt_ids, *written]])
        written.append(int(model(whole, use_cache=False).logits[0, -1].argmax()))
    return tuple(written)


def models(*, packed=False):
    both = {"before": adopt(tiny_model("mixtral"), CPU), "after": adopt(tiny_model("mixtral", seed=1), CPU)}
    for model in both.values():
        model.packed = packed
    return both


@pytest.fixture(scope="module", params=[False, True], ids=["padded", "packed"])
def is_packed(request):
    return request.param


@pytest.fixture(scope="module")
def scores(is_packed):
    return scored(models(packed=is_packed))


def scored(models, openings=OPENINGS, **more):
    settings = {"max_new_tokens": NEW, "micro_batch_tokens": 60, "eos_ids": (EOS,)} | more
    return score_rows(
        {name: Subject(model) for name, model in models.items()},
        [Scorable(row, of_row) for row, of_row in zip(ROWS, openings, strict=True)],
        pad_id=0,
        comm=CPU,
        progress=lambda _: None,
        **settings,
    )


def test_what_is_known_is_not_asked_again_and_all_else_has_the_same_bits(scores, is_packed):
    both, passes = models(packed=is_packed), []
    both["before"].module.register_forward_hook(lambda *_: passes.append(1))
    again = scored(both, known=("before",))
    assert [set(score.replies) for score in again] == [{"after"}] * len(ROWS)
    assert [(score.replies["after"], score.kl_sums, score.num_loss_tokens) for score in again] == [
        (score.replies["after"], score.kl_sums, score.num_loss_tokens) for score in scores
    ]
    lengths = [Scorable(row, openings).longest(NEW) for row, openings in zip(ROWS, OPENINGS, strict=True)]
    assert len(passes) == len(token_budget(lengths, 60))  # one each: no opening, and no token of an answer


def test_each_row_alone_has_these_numbers(scores):
    models = {"before": tiny_model("mixtral"), "after": tiny_model("mixtral", seed=1)}
    for row, openings, score in zip(ROWS, OPENINGS, scores, strict=True):
        assert score.num_loss_tokens == len(row.response_ids)
        of_each = {}
        for when, model in models.items():
            reply = score.replies[when]
            of_each[when] = log_p(model, row)
            expected = sum(-of_each[when][i, token].item() for i, token in enumerate(row.response_ids))
            assert reply.loss_sum == pytest.approx(expected, abs=1e-4)
            means = [
                log_p(model, each)[range(len(each.response_ids)), each.response_ids].mean().item() for each in openings
            ]
            assert reply.opening_log_p == pytest.approx(means, abs=1e-5)
            assert reply.ids == greedy(model, row)
        base, model = of_each.values()
        divergence = (model.exp() * (model - base)).sum().item()
        reverse = (base.exp() * (base - model)).sum().item()
        if row.unsafe or not row.response_ids:
            assert score.kl_sums == {"after": 0}
        else:
            assert score.kl_sums["after"] == pytest.approx(divergence, abs=1e-4)
            assert abs(divergence - reverse) > 1e-3, "the two directions cannot be told apart here"


def test_packed_rows_of_a_pass_are_one_row_without_padding(is_packed):
    both, shapes = models(packed=is_packed), []
    both["after"].module.register_forward_pre_hook(
        lambda _, args, given: shapes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    scored({"after": both["after"]}, NO_OPENINGS, max_new_tokens=0, micro_batch_tokens=1000, eos_ids=())
    lengths = [row.num_tokens for row in ROWS]
    assert shapes == [(1, sum(lengths))] if is_packed else [(len(ROWS), max(lengths))]


def test_a_model_is_at_no_distance_from_itself():
    model = adopt(tiny_model("mixtral"), CPU)
    found = scored({"before": model, "after": model}, NO_OPENINGS, max_new_tokens=2, eos_ids=())
    assert [score.kl_sums for score in found] == [{"after": 0}] * len(ROWS)
    assert all(score.replies["before"] == score.replies["after"] for score in found)


def test_an_opening_has_no_token_that_ends_a_turn():
    assert opening(Encoded((7, 8), (9, 10, EOS)), {EOS}).response_ids == (9, 10)
    assert opening(Encoded((7, 8), (9, 10, 11, 12, EOS), gap=(4, 6)), {EOS}).response_ids == (9, 10)
    assert opening(Encoded((7, 8), (9, 10)), {EOS}).response_ids == (9, 10)
    assert opening(Encoded((7, 8), (EOS,)), {EOS}).response_ids == (EOS,)
