"""A step on packed rows is the step on padded ones, up to rounding; and both are what plain transformers computes."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch

from dist_moe.config.objective import ObjectiveConfig
from dist_moe.config.schema import TrainConfig
from dist_moe.data.tokens import Encoded, TokenBatch
from dist_moe.engines.local import LocalEngine
from dist_moe.measure.collect import count_rows
from dist_moe.model.model import MoEModel, adopt
from dist_moe.objective.dpo import DPO
from dist_moe.objective.kl_to_base import KLToBase
from dist_moe.objective.router_consistency import RouterConsistency
from dist_moe.objective.router_drift import RouterDrift
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.price import route_price
from dist_moe.training.promise import Promise
from dist_moe.training.split import Split
from dist_moe.training.step import MaskedStep, StepResult, route_plan
from tests.plain import response_loss, routed
from tests.tiny import random_masks, tiny_model

CPU = SoloComm(torch.device("cpu"))
MASK = random_masks(1)[0]
LENGTHS = [(4, 9), (3, 1), (17, 6), (1, 3), (9, 2), (2, 12)]
EVERY_TERM = ObjectiveConfig(
    kl_to_base=KLToBase(weight=0.5, rows="safe"),
    router_drift=RouterDrift(weight=0.3),
    router_consistency=RouterConsistency(weight=0.7),
    dpo=DPO(weight=0.4),
)


@cache
def rows() -> list[Encoded]:
    generator = torch.Generator().manual_seed(11)
    ids = [torch.randint(3, 120, (sum(both) + 4,), generator=generator).tolist() for both in LENGTHS]
    found = [
        Encoded(tuple(i[:n]), tuple(i[n : n + m]), row % 2 == 1)
        for row, (i, (n, m)) in enumerate(zip(ids, LENGTHS, strict=True))
    ]
    return [
        replace(row, rejected=replace(row, response_ids=tuple(i[-4:]))) if row.unsafe else row
        for row, i in zip(found, ids, strict=True)
    ]


def stepped(
    settings: TrainConfig, *, packed: bool, num_steps: int = 2
) -> tuple[StepResult, MoEModel, list[TokenBatch]]:
    """Steps on two micro-batches each; the second is not at the base."""
    model = adopt(tiny_model("mixtral"), CPU)
    model.keep_originals(MASK)
    optimizer = SelectiveAdamW(model.layers, MASK, Mesh.one_replica(CPU), lr=1e-3, eps=1e-6)
    engine = LocalEngine(model.module, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))
    promise = Promise.of(MASK.numpy(), [row.unsafe for row in rows()])
    step = MaskedStep(model, optimizer, engine, CPU, settings, lambda batch_id: promise)
    batches = Split.of(len(rows()), 1, 4, packed=packed).local(rows(), 0, 0, pairs=settings.objective.dpo.weight > 0)
    assert len(batches) == 2
    for _ in range(num_steps):
        result = step("the batch", MASK, batches)
    return result, model, batches


@pytest.mark.parametrize(
    "settings",
    [
        TrainConfig(mode="update"),
        TrainConfig(mode="route", scope="unsafe", objective=EVERY_TERM),
    ],
    ids=["update", "every term, under a mask for unsafe rows"],
)
def test_a_packed_step_is_the_padded_one(settings: TrainConfig) -> None:
    (padded, model, wide), (packed, other, narrow) = (stepped(settings, packed=way) for way in (False, True))
    assert sum(batch.input_ids.numel() for batch in narrow) == sum(batch.num_live for batch in wide)
    assert sum(batch.input_ids.numel() for batch in wide) > 1.3 * sum(batch.num_live for batch in wide)
    for name in ("num_loss_tokens", "num_tokens", "num_active", "num_stepped", "mask_hash"):
        assert getattr(packed, name) == getattr(padded, name), name
    assert packed.loss == pytest.approx(padded.loss, rel=1e-5)
    assert packed.grad_norm == pytest.approx(padded.grad_norm, rel=1e-4)
    for name, term in padded.terms.items():
        assert packed.terms[name].tokens == term.tokens
        assert packed.terms[name].mean == pytest.approx(term.mean, rel=1e-4, abs=1e-6), name
    base, moved = adopt(tiny_model("mixtral"), CPU), torch.tensor(False)
    for layer, same, before in zip(model.layers, other.layers, base.layers, strict=True):
        for name, weight in layer.bank.items():
            moved |= (weight - before.bank[name]).abs().max() > 1e-3
            torch.testing.assert_close(same.bank[name], weight, rtol=0, atol=1e-5)
    assert moved


def test_loss_and_counts_are_those_of_plain_transformers_for_each_row_alone() -> None:
    plain = tiny_model("mixtral")
    model = adopt(tiny_model("mixtral"), CPU)
    model.packed = True
    for budget in (20, 1000):  # the longest row is longer than the first
        found = count_rows(
            model, rows(), tokens="completion", micro_batch_tokens=budget, pad_id=0, comm=CPU, gates=True
        )
        for i, row in enumerate(rows()):
            chosen_TLE = routed(plain, row.prompt_ids + row.response_ids)[len(row.prompt_ids) :]
            assert (found.counts_PLE[i] == chosen_TLE.sum(0)).all()
            assert found.tokens_P[i] == len(row.response_ids)
            assert found.tables["gates"][i].sum() == pytest.approx(3 * len(row.response_ids), rel=1e-5)
    batches = Split.of(len(rows()), 1, 4, packed=True).local(rows(), 0, 0)
    priced = route_price(model, batches, route_plan(TrainConfig(), MASK), CPU)
    for label, is_unsafe in (("safe", False), ("unsafe", True)):
        assert priced[label].loss == pytest.approx(
            response_loss(plain, [r for r in rows() if r.unsafe == is_unsafe]), abs=1e-5
        )
    first, _, _ = stepped(TrainConfig(mode="update"), packed=True, num_steps=1)
    assert first.loss == pytest.approx(response_loss(plain, rows()), abs=1e-5)
