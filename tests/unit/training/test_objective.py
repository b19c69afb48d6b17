"""Terms against torch's own functions, on the rows that they name."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dist_moe.objective import TERMS, ContrastTerm, Inputs
from dist_moe.objective.cross_entropy import Answers, CrossEntropy, Refusals
from dist_moe.objective.dpo import DPO
from dist_moe.objective.kl_to_base import KLToBase
from dist_moe.objective.router_consistency import RouterConsistency
from dist_moe.objective.router_drift import RouterDrift
from dist_moe.registry import parameters
from dist_moe.trackers.console import Console
from dist_moe.trackers.tracker import Place
from dist_moe.training.objective import Objective, Read, TermResult, Tokens

V = 50
UNSAFE = torch.tensor([False, True, True, False, False])
NUMBERS = {("answers", "all"): 5, ("answers", "safe"): 3, ("answers", "unsafe"): 2}
LIVE_T = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 0, 1], dtype=torch.bool)
UNSAFE_T = torch.tensor([0, 0, 0, 1, 1, 1, 1, 0, 0, 0], dtype=torch.bool)
AT = torch.tensor([0, 3, 5, 7, 9])
NUMBERS |= {("tokens", "all"): 8, ("tokens", "safe"): 4, ("tokens", "unsafe"): 4}
NUM_LAYERS, W = 2, 6


def logits(seed, dtype=torch.float32):
    return (3 * torch.randn(5, V, generator=torch.Generator().manual_seed(seed))).to(dtype)


TARGET = torch.tensor([3, 49, 0, 7, 7])


def routers(seed):
    """Of each layer [T, W]; padding has what must not count."""
    generator = torch.Generator().manual_seed(seed)
    found = [2 * torch.randn(len(LIVE_T), W, generator=generator) for _ in range(NUM_LAYERS)]
    return [logits_TW.masked_fill(~LIVE_T[:, None], float("nan")) for logits_TW in found]


def tokens_of(model_logits, base=None, unsafe=UNSAFE, routed=(), base_routed=()):
    base = None if base is None else Read(base, base_routed)
    no_pair, accepted = torch.full_like(TARGET, -1), torch.zeros_like(unsafe)
    return Tokens(TARGET, unsafe, AT, LIVE_T, UNSAFE_T, no_pair, accepted, Read(model_logits, routed), base)


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
    tokens = tokens_of(logits(1), base[chosen[objective.base_rows]])
    losses = objective.losses(tokens, NUMBERS)
    cross_entropy = F.cross_entropy(logits(1), TARGET, reduction="none")[chosen[rows]].mean()
    target = torch.softmax(base, -1)
    kl = F.kl_div(torch.log_softmax(logits(1), -1), target, reduction="none").sum(-1)[chosen[kl_rows]].mean()
    torch.testing.assert_close(objective.total(losses, NUMBERS), 0.5 * cross_entropy + 2 * kl)
    loss, terms = objective.results(torch.stack([each.double().sum() for each in losses.values()]), NUMBERS)
    assert loss == pytest.approx(float(0.5 * cross_entropy + 2 * kl), rel=1e-5)
    assert {name: term.tokens for name, term in terms.items()} == {
        "cross_entropy": NUMBERS["answers", rows],
        "kl_to_base": NUMBERS["answers", kl_rows],
    }
    assert terms["kl_to_base"].mean == pytest.approx(float(kl), rel=1e-5)


def test_terms_of_other_rows_share_one_base_pass():
    class OfUnsafe(KLToBase):
        name = "of_unsafe"

    objective = Objective([KLToBase(weight=1.0), OfUnsafe(weight=1.0, rows="unsafe")])
    assert objective.base_rows == "all"
    losses = objective.losses(tokens_of(logits(1), logits(2)), NUMBERS)
    every = KLToBase().losses(Inputs(logits_mV=logits(1), target_m=TARGET, base_logits_mV=logits(2)))
    assert torch.equal(losses["kl_to_base"], every[~UNSAFE])
    assert torch.equal(losses["of_unsafe"], every[UNSAFE])


@pytest.mark.parametrize("rows", ["all", "safe", "unsafe"])
def test_router_drift_is_over_all_real_tokens_of_its_rows(rows):
    objective = Objective([RouterDrift(weight=3.0, rows=rows)])
    ours = [each.requires_grad_() for each in routers(1)]
    theirs = [each.requires_grad_() for each in routers(1)]
    tokens = tokens_of(logits(1).requires_grad_(), logits(1), routed=ours, base_routed=routers(2))
    losses = objective.losses(tokens, NUMBERS)
    total = objective.total(losses, NUMBERS)
    total.backward()
    chosen = LIVE_T & {"all": torch.ones_like(UNSAFE_T), "safe": ~UNSAFE_T, "unsafe": UNSAFE_T}[rows]
    expected = sum(
        F.kl_div(x[chosen].log_softmax(-1), y[chosen].softmax(-1), reduction="batchmean")
        for x, y in zip(theirs, routers(2), strict=True)
    )
    (3 * expected / NUM_LAYERS).backward()
    torch.testing.assert_close(total, 3 * expected / NUM_LAYERS)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad[chosen], y.grad[chosen])
        assert not x.grad[~chosen].any()


def consistency(routed):
    """By definition, from all tokens at once: KL(safe || unsafe) of mean distributions, a mean over layers."""
    of = [[x[LIVE_T & rows].softmax(-1).mean(0) for x in routed] for rows in (~UNSAFE_T, UNSAFE_T)]
    return sum((p * (p / q).log()).sum() for p, q in zip(*of, strict=True)) / NUM_LAYERS


@pytest.mark.parametrize("starts", [[0], [0, 4], [0, 3, 7]])
def test_router_consistency_and_its_gradient_are_the_whole_batchs_in_parts(starts):
    parts = [slice(*each) for each in pairwise([*starts, len(LIVE_T)])]
    objective = Objective([CrossEntropy(weight=0.5), RouterConsistency(weight=2.0)])
    ours, theirs = ([each.requires_grad_() for each in routers(1)] for _ in range(2))

    def part(where):
        read = Read(logits(1)[:0], [x[where] for x in ours])
        none = torch.zeros(0, dtype=torch.int64)
        return Tokens(none, none.bool(), none, LIVE_T[where], UNSAFE_T[where], none, none.bool(), read, None)

    with torch.no_grad():
        sums = [objective.sums(part(where))["router_consistency"] for where in parts]
    contrasts = objective.contrasts({"router_consistency": [sum(each) for each in zip(*sums, strict=True)]}, NUMBERS)
    sum(objective.total(objective.losses(part(w), NUMBERS, contrasts), NUMBERS) for w in parts).backward()
    expected = consistency(theirs)
    (2 * expected).backward()
    assert expected > 0.01
    loss, terms = objective.results(torch.zeros(2, dtype=torch.float64), NUMBERS, contrasts)
    assert terms["router_consistency"] == TermResult(pytest.approx(expected.item(), rel=1e-5), 8)
    assert loss == pytest.approx(2 * expected.item(), rel=1e-5)
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad[LIVE_T], y.grad[LIVE_T], rtol=1e-4, atol=1e-7)
        assert not x.grad[~LIVE_T].any()


def test_a_contrast_that_lacks_a_label_is_0_and_has_no_gradient():
    objective = Objective([RouterConsistency(weight=2.0)])
    ours, none = [each.requires_grad_() for each in routers(1)], NUMBERS | {("tokens", "unsafe"): 0}
    tokens = tokens_of(logits(1).requires_grad_(), routed=ours)
    contrasts = objective.contrasts(objective.sums(tokens), none)
    objective.total(objective.losses(tokens, none, contrasts), none).backward()
    assert objective.results(torch.zeros(1), none, contrasts)[0] == 0
    assert not any(x.grad[LIVE_T].any() for x in ours)


def test_a_term_over_all_tokens_goes_through_the_output_layer():
    """Ranks go through all layers backwards together, and sharded weights come in that order."""
    model_logits = logits(1).requires_grad_()
    tokens = tokens_of(model_logits, logits(1), routed=routers(1), base_routed=routers(2))
    objective = Objective([RouterDrift(weight=1.0)])
    objective.total(objective.losses(tokens, NUMBERS), NUMBERS).backward()
    assert model_logits.grad is not None
    assert not model_logits.grad.any()


@pytest.mark.parametrize(("term", "rows"), [(Refusals, "unsafe"), (Answers, "safe")])
def test_each_label_has_a_cross_entropy_of_its_own(term, rows):
    objective = Objective([term(weight=0.25)])
    losses = objective.losses(tokens_of(logits(1)), NUMBERS)
    chosen = UNSAFE if rows == "unsafe" else ~UNSAFE
    expected = F.cross_entropy(logits(1)[chosen], TARGET[chosen])
    torch.testing.assert_close(objective.total(losses, NUMBERS), 0.25 * expected)


def test_dpo_and_its_gradient_are_its_definition():
    """Two rows of three tokens with a pair each, and one without; far from the base, and at it."""
    pair = torch.tensor([2, 2, -1, 0, 2, 0])
    rejected = torch.tensor([False, False, False, False, True, True])
    target = torch.tensor([3, 49, 0, 7, 7, 1])
    generator = torch.Generator().manual_seed(5)
    base = 3 * torch.randn(6, V, generator=generator)
    unsafe = torch.tensor([True, True, False, False, True, False])
    for far in (0.0, 3.0):
        ours, theirs = (
            (base + far * torch.randn(6, V, generator=torch.Generator().manual_seed(6))).requires_grad_()
            for _ in range(2)
        )
        tokens = Tokens(target, unsafe, target, LIVE_T, UNSAFE_T, pair, rejected, Read(ours), Read(base))
        objective, numbers = Objective([CrossEntropy(), DPO(weight=2.0, beta=0.7)]), NUMBERS | {("pairs", "all"): 2}
        losses = objective.losses(tokens, numbers)
        logp, old = (torch.distributions.Categorical(logits=logits).log_prob(target) - 0.0 for logits in (theirs, base))
        gain = logp - old
        margins = torch.stack([gain[3] - gain[5], gain[0] + gain[1] - gain[4]])
        expected = -torch.log(torch.sigmoid(0.7 * margins))
        torch.testing.assert_close(losses["dpo"], expected)
        torch.testing.assert_close(losses["cross_entropy"], -logp[~rejected])  # a rejected answer is not learnt
        losses["dpo"].sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)
        assert ours.grad[[0, 3, 4, 5]].any(1).all()
    objective = Objective([DPO(weight=2.0, rows="unsafe")])
    losses = objective.losses(
        Tokens(target, unsafe, target, LIVE_T, UNSAFE_T, pair, rejected, Read(ours), Read(base[unsafe])),
        NUMBERS | {("pairs", "unsafe"): 1},
    )
    torch.testing.assert_close(losses["dpo"], -torch.log(torch.sigmoid(0.1 * margins[1:])))


def test_rows_without_a_token_give_0_and_a_graph():
    model_logits = logits(1).requires_grad_()
    objective = Objective([KLToBase(weight=1.0)])
    none = NUMBERS | {("answers", "safe"): 0, ("answers", "unsafe"): 5}
    losses = objective.losses(tokens_of(model_logits, unsafe=torch.ones_like(UNSAFE)), none)
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
    line = {"step": 1, "batch": 0, "category": "c", "num_active": 3, "is_empty": False, "loss": 1.75, "grad_norm": 0.1}
    line |= {
        "mask_hash": "0123456789abcdef" * 4,
        "tokens_per_second": 3,
        "terms": {name: {"mean": mean, "tokens": 4} for name, mean in terms.items()},
    }
    with caplog.at_level("INFO"):
        Console().record(line, Place(run_dir=Path(), rank=0, num_steps=10))
    assert f"batch 0 (c)  mask 0123456789ab  experts 3  {says}" in caplog.text


def test_every_term_says_what_its_settings_are():
    assert {name: term().weight for name, term in TERMS.items() if term().weight} == {"cross_entropy": 1}
    for term in TERMS.values():
        assert term.__doc__
        expected = {"weight"} if issubclass(term, ContrastTerm) else {"weight", "rows"}
        assert expected <= {parameter.name for parameter in parameters(term)}  # each with help
