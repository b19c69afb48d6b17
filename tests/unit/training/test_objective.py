"""Terms against torch's own functions, on the rows that they name."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dist_moe.objective import TERMS, Inputs
from dist_moe.objective.cross_entropy import CrossEntropy
from dist_moe.objective.kl_to_base import KLToBase
from dist_moe.registry import parameters
from dist_moe.trackers.console import Console
from dist_moe.trackers.tracker import Place
from dist_moe.training.objective import LossTokens, Objective, TermResult

V = 50
UNSAFE = torch.tensor([False, True, True, False, False])
NUMBERS = {"all": 5, "safe": 3, "unsafe": 2}


def logits(seed, dtype=torch.float32):
    return (3 * torch.randn(5, V, generator=torch.Generator().manual_seed(seed))).to(dtype)


TARGET = torch.tensor([3, 49, 0, 7, 7])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [0, 1, 5])
def test_cross_entropy_and_its_gradient_are_torchs_bit_for_bit(dtype, m):
    ours, theirs = (logits(1, dtype)[:m].requires_grad_() for _ in range(2))
    found = CrossEntropy().losses(Inputs(logits_mV=ours, target_m=TARGET[:m], base_logits_mV=None))
    expected = F.cross_entropy(theirs.float(), TARGET[:m], reduction="none")
    assert torch.equal(found, expected)
    (found.sum() / 5).backward()
    (expected.sum() / 5).backward()
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_to_base_and_its_gradient_are_torchs(dtype):
    ours, theirs = (logits(1, dtype).requires_grad_() for _ in range(2))
    found = KLToBase().losses(Inputs(logits_mV=ours, target_m=TARGET, base_logits_mV=logits(2, dtype)))
    base = torch.log_softmax(logits(2, dtype).float(), -1)
    expected = F.kl_div(torch.log_softmax(theirs.float(), -1), base, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found > 0.1).all()
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_same_distribution_has_no_divergence():
    found = KLToBase().losses(Inputs(logits_mV=logits(1), target_m=TARGET, base_logits_mV=logits(1)))
    assert not found.any()


@pytest.mark.parametrize("rows", ["all", "safe", "unsafe"])
@pytest.mark.parametrize("kl_rows", ["all", "safe", "unsafe"])
def test_the_sum_of_weighted_means_over_each_terms_rows(rows, kl_rows):
    objective = Objective([CrossEntropy(weight=0.5, rows=rows), KLToBase(weight=2.0, rows=kl_rows)])
    chosen = {"all": torch.ones_like(UNSAFE), "safe": ~UNSAFE, "unsafe": UNSAFE}
    base = logits(2)
    tokens = LossTokens(logits(1), TARGET, UNSAFE, base[chosen[objective.base_rows]])
    losses = objective.losses(tokens, NUMBERS)
    cross_entropy = F.cross_entropy(logits(1), TARGET, reduction="none")[chosen[rows]].mean()
    target = torch.softmax(base, -1)
    kl = F.kl_div(torch.log_softmax(logits(1), -1), target, reduction="none").sum(-1)[chosen[kl_rows]].mean()
    torch.testing.assert_close(objective.total(losses, NUMBERS), 0.5 * cross_entropy + 2 * kl)
    loss, terms = objective.results(torch.stack([each.double().sum() for each in losses.values()]), NUMBERS)
    assert loss == pytest.approx(float(0.5 * cross_entropy + 2 * kl), rel=1e-5)
    assert {name: term.tokens for name, term in terms.items()} == {
        "cross_entropy": NUMBERS[rows],
        "kl_to_base": NUMBERS[kl_rows],
    }
    assert terms["kl_to_base"].mean == pytest.approx(float(kl), rel=1e-5)


def test_terms_of_other_rows_share_one_base_pass():
    class OfUnsafe(KLToBase):
        name = "of_unsafe"

    objective = Objective([KLToBase(weight=1.0), OfUnsafe(weight=1.0, rows="unsafe")])
    assert objective.base_rows == "all"
    losses = objective.losses(LossTokens(logits(1), TARGET, UNSAFE, logits(2)), NUMBERS)
    every = KLToBase().losses(Inputs(logits_mV=logits(1), target_m=TARGET, base_logits_mV=logits(2)))
    assert torch.equal(losses["kl_to_base"], every[~UNSAFE])
    assert torch.equal(losses["of_unsafe"], every[UNSAFE])


def test_rows_without_a_token_give_0_and_a_graph():
    model_logits = logits(1).requires_grad_()
    objective = Objective([KLToBase(weight=1.0)])
    none = {"all": 5, "safe": 0, "unsafe": 5}
    losses = objective.losses(LossTokens(model_logits, TARGET, torch.ones_like(UNSAFE), None), none)
    total = objective.total(losses, none)
    total.backward()
    assert total == 0
    assert not model_logits.grad.any()
    loss, terms = objective.results(torch.zeros(1, dtype=torch.float64), none)
    assert (loss, terms) == (0, {"kl_to_base": TermResult(0, 0)})
    assert not math.isnan(loss)


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ({"cross_entropy": 1.5}, "loss 1.7500  norm"),
        ({"cross_entropy": 1.5, "kl_to_base": 0.5}, "loss 1.7500 (cross_entropy 1.5000, kl_to_base 0.5000)  norm"),
    ],
)
def test_the_console_tells_terms_apart_only_where_there_are_several(terms, says, caplog):
    line = {"step": 1, "batch": 0, "category": "c", "num_active": 3, "loss": 1.75, "grad_norm": 0.1}
    line |= {"tokens_per_second": 3, "terms": {name: {"mean": mean, "tokens": 4} for name, mean in terms.items()}}
    with caplog.at_level("INFO"):
        Console().record(line, Place(run_dir=Path(), rank=0, num_steps=10))
    assert says in caplog.text


def test_every_term_says_what_its_settings_are():
    assert {name: term().weight for name, term in TERMS.items() if term().weight} == {"cross_entropy": 1}
    for term in TERMS.values():
        assert term.__doc__
        assert {"weight", "rows"} <= {parameter.name for parameter in parameters(term)}  # each with help
