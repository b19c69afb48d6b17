"""The base model without a second model: the originals of the union's experts in the banks for one pass."""

import pytest
import torch

from dist_moe.config.objective import ObjectiveConfig
from dist_moe.config.schema import TrainConfig
from dist_moe.data.tokens import Encoded, collate
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import adopt
from dist_moe.objective.kl_to_base import KLToBase
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.report.model import forward_passes
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.step import MaskedStep
from tests.ranks.test_training import Case, expected_of, train_case
from tests.tiny import random_masks, tiny_model, token_ids

CPU = SoloComm(torch.device("cpu"))
MASK, OTHER = random_masks(2)
UNION = MASK | OTHER
IDS = token_ids(5)


class FailureError(Exception):
    pass


def moved(family="gpt_oss"):
    """A model whose union is no longer what it was, and keeps what it was."""
    model = adopt(tiny_model(family), CPU)
    model.keep_originals(UNION)
    for layer in model.layers:
        for weight in layer.bank.values():
            weight[UNION[layer.index]] += 0.05
    return model


def bits(model):
    return [weight.clone() for layer in model.layers for weight in layer.bank.values()]


def logits(module):
    with torch.no_grad():
        return module(input_ids=IDS, use_cache=False).logits


def test_the_base_is_what_the_experts_were_whatever_they_are_trained_to():
    model = moved()
    with model.originals.in_force():
        assert torch.equal(logits(model.module), logits(adopt(tiny_model("gpt_oss"), CPU).module))
    assert not torch.equal(logits(model.module), logits(adopt(tiny_model("gpt_oss"), CPU).module))


def fail_after_use(model):
    with model.originals.in_force():
        raise FailureError


def fail_between_two_layers(model):
    def swap(*_):
        raise FailureError

    original, patch = type(model.originals._kept[3]).swap, pytest.MonkeyPatch()
    third = model.originals._kept[3]
    patch.setattr(type(third), "swap", lambda kept: swap() if kept is third else original(kept))
    try:
        fail_after_use(model)
    finally:
        patch.undo()


@pytest.mark.parametrize("fail", [fail_after_use, fail_between_two_layers])
def test_every_bit_is_back_also_after_an_exception(fail):
    model = moved()
    before, kept = bits(model), [row.clone() for *_, row in model.originals.weights()]
    for _ in range(2):  # looked at each time: two failures might make up for each other
        with pytest.raises(FailureError):
            fail(model)
        assert all(map(torch.equal, bits(model), before))
        assert all(map(torch.equal, (row for *_, row in model.originals.weights()), kept))


def test_memory_is_that_of_the_unions_experts():
    model = moved("mixtral")
    model_bytes = sum(weight.nbytes for layer in model.layers for weight in layer.bank.values())
    assert model.originals.num_bytes == pytest.approx(model_bytes * float(UNION.float().mean()))
    assert f"{1e-6 * model.originals.num_bytes:,.1f} MB on this rank" in " ".join(forward_passes(model))


def stepping(labels, mode="route", **settings):
    model = moved("mixtral")
    optimizer = SelectiveAdamW(model.layers, UNION, Mesh.one_replica(CPU), lr=1e-2)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    engine = LocalEngine(model.module, optimizer, schedule)
    train = TrainConfig(mode=mode, objective=ObjectiveConfig(kl_to_base=KLToBase(weight=1.0, **settings)))
    promise = Promise.of(MASK.numpy(), labels)
    rows = [Encoded(tuple(ids[:4]), tuple(ids[4:]), label) for ids, label in zip(IDS.tolist(), labels, strict=True)]
    step = MaskedStep(model, optimizer, engine, CPU, train, lambda batch_id: promise)
    return step, [collate(rows[:2], 0), collate(rows[2:], 0)]


@pytest.mark.parametrize("mode", ["route", "update"])
def test_a_step_with_a_divergence_is_let_through_and_holds_the_audit(mode):
    step, batches = stepping([False, True, True, False], mode)
    result = step.audited("the batch", MASK, batches)
    assert result.terms["kl_to_base"].mean > 0.001
    assert result.loss == sum(term.mean for term in result.terms.values())


@pytest.mark.parametrize(("label", "rows"), [(True, "safe"), (False, "unsafe")])
def test_a_batch_without_a_row_of_the_kind_has_0_of_it(label, rows):
    step, batches = stepping([label] * 4, rows=rows)
    result = step.audited("the batch", MASK, batches)
    assert (result.terms["kl_to_base"].mean, result.terms["kl_to_base"].tokens) == (0, 0)
    assert result.loss == result.terms["cross_entropy"].mean > 0


def test_the_audit_sees_an_original_that_changes(monkeypatch):
    step, batches = stepping([False, True, True, False])
    inside = int(torch.nonzero(MASK.flatten())[0])
    key = divmod(inside, MASK.shape[1])
    row = next(row for place, _, row in step.model.originals.weights() if place == key)
    engine_step = step.engine.step
    monkeypatch.setattr(step.engine, "step", lambda last: (engine_step(last=last), row.add_(1e-3)))
    with pytest.raises(AssertionError, match="changed the original L"):
        step.audited("the batch", MASK, batches)


@pytest.mark.parametrize(
    "case",
    [
        Case(drift=20.0, consistency=20.0, refusals=0.5, micro_batch_size=2),
        Case(dpo=5.0, drift=20.0, micro_batch_size=2, scope="unsafe"),
    ],
    ids=["routers", "pairs"],
)
def test_terms_beside_the_cross_entropy_equal_plain_transformers(case):
    """Several micro-batches; `tests/ranks/test_training.py` has the same on ranks."""
    answer, expected = train_case(CPU, case), expected_of(case)
    for i, (loss, norm, terms) in enumerate(expected.steps):
        assert answer["losses"][i] == pytest.approx(loss, abs=1e-5)
        assert answer["norms"][i] == pytest.approx(norm, abs=1e-5)
        assert answer["terms"][i] == pytest.approx(terms, abs=1e-6)
    assert min(terms.values()) > 1e-4
    for key, weight in expected.weights.items():
        torch.testing.assert_close(torch.from_numpy(answer["weights"][key]), weight, rtol=0, atol=1e-5)


def test_an_objective_that_needs_the_base_is_not_run_without():
    step, _ = stepping([False] * 4)
    step.model.originals = None
    with pytest.raises(AssertionError, match="originals"):
        MaskedStep(step.model, step.optimizer, step.engine, CPU, step.settings, step.promises)
