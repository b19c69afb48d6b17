"""Routers and dense weights that are trained: what monitor and audit see of them, and that all families' learn."""

import pytest
import torch

from dist_moe.config.schema import TrainConfig
from dist_moe.conformance.sizes import FAMILY_CONFIGS, build
from dist_moe.data.tokens import collate
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import adopt
from dist_moe.moe.layout import hub_layout
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.rounds import Trained
from dist_moe.training.step import MaskedStep
from tests.checkpoint import save_checkpoint
from tests.ranks.test_training import batch_rows
from tests.tiers import by_family
from tests.tiny import random_masks, tiny_model

CPU = SoloComm(torch.device("cpu"))
MASK = random_masks(1)[0]
BATCH = collate(batch_rows(0, 4), pad_id=0)
ROUTERS, EXPERTS, BOTH = Trained(experts=False, dense=True), Trained(), Trained(dense=True)


def stepping(model, mask, *, every=False):
    model.train_dense([name for name, _ in model.module.named_parameters()] if every else model.router_names)
    optimizer = SelectiveAdamW(model.layers, mask, Mesh.one_replica(CPU), lr=1e-2, dense=model.dense)
    engine = LocalEngine(model.module, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))
    promise = Promise.of(mask.numpy(), [row.unsafe for row in batch_rows(0, 4)])
    return MaskedStep(model, optimizer, engine, CPU, TrainConfig(mode="update"), lambda _: promise)


def bits(step):
    dense = {name: weight.detach().clone() for name, weight in step.model.dense.items()}
    experts = {(layer.index, n): w.clone() for layer in step.model.layers for n, w in layer.bank.items()}
    return dense, experts


def take(step, trained, mask=MASK, *, audited=False):
    """Whether dense weights, and whether experts have moved."""
    before = bits(step)
    (step.audited if audited else step)("0", mask, [BATCH], 1.0, trained)
    return [
        any(not torch.equal(old[key], new[key]) for key in old) for old, new in zip(before, bits(step), strict=True)
    ]


def test_a_round_moves_what_it_trains_and_keeps_the_state_of_the_other():
    step = stepping(adopt(tiny_model("mixtral"), CPU), MASK)
    for trained in (EXPERTS, ROUTERS, EXPERTS, ROUTERS, BOTH):
        assert take(step, trained, audited=True) == [trained.dense, trained.experts]
    assert {int(state.step) for state in step.optimizer.dense.state.values()} == {3}
    assert max(int(state.step) for state in step.optimizer.expert_state.values()) == 3


def test_afterwards_nothing_requires_gradients():
    step = stepping(adopt(tiny_model("mixtral"), CPU), MASK, every=True)
    take(step, BOTH)
    assert not any(weight.requires_grad or weight.grad is not None for weight in step.model.dense.values())
    assert not any(parameter.requires_grad for parameter in step.model.module.parameters())


def require_gradients(step):
    step.model.module.get_input_embeddings().weight.requires_grad_(True)


def compute_with_another(step):
    name = step.model.router_names[1]
    parent, _, last = name.rpartition(".")
    setattr(step.model.module.get_submodule(parent), last, step.model.dense[name].clone())


def leave_one_out(step):
    step.optimizer.dense.weights.pop(step.model.router_names[1])


@pytest.mark.parametrize(
    ("fault", "trained", "says"),
    [
        (require_gradients, EXPERTS, "has gradients: True"),
        (require_gradients, BOTH, "has gradients: True"),
        (compute_with_another, ROUTERS, "the model does not compute with the model.layers.1"),
        (leave_one_out, BOTH, "gradients are kept of 2 dense weights, expected 3"),
    ],
)
def test_the_monitor_sees_a_fault_before_any_weight_moves(fault, trained, says):
    step = stepping(adopt(tiny_model("mixtral"), CPU), MASK)
    fault(step)
    before = bits(step)
    with pytest.raises(AssertionError, match=says):
        step("0", MASK, [BATCH], 1.0, trained)
    assert all(torch.equal(old[key], new[key]) for old, new in zip(before, bits(step), strict=True) for key in old)


def test_the_monitor_sees_dense_weights_in_a_round_of_experts(monkeypatch):
    step = stepping(adopt(tiny_model("mixtral"), CPU), MASK)
    begin = step.optimizer.begin
    monkeypatch.setattr(step.optimizer, "begin", lambda mask, dense=False: begin(mask, dense=True))
    with pytest.raises(AssertionError, match="gradients are kept of 3 dense weights, expected 0"):
        step("0", MASK, [BATCH], 1.0, EXPERTS)


def move_a_router(step):
    step.model.dense[step.model.router_names[0]].add_(1e-3)


def move_a_moment(step):
    step.optimizer.dense.state[step.model.router_names[0]].exp_avg.add_(1e-3)


def move_an_expert(step):
    step.model.layers[1].bank["down_proj"][int(MASK[1].nonzero()[0])] += 1e-3


@pytest.mark.parametrize(
    ("fault", "trained", "says"),
    [
        (move_a_router, EXPERTS, "gate.weight"),
        (move_a_moment, EXPERTS, "optimizer state exp_avg"),
        (move_an_expert, ROUTERS, "down_proj"),
    ],
)
def test_the_audit_sees_what_a_round_must_not_change(fault, trained, says, monkeypatch):
    step = stepping(adopt(tiny_model("mixtral"), CPU), MASK)
    engine_step = step.engine.step
    monkeypatch.setattr(step.engine, "step", lambda last: (engine_step(last=last), fault(step)))
    with torch.no_grad(), pytest.raises(AssertionError, match=says), torch.enable_grad():
        step.audited("0", MASK, [BATCH], 1.0, trained)


def test_a_routers_bias_is_trained_with_its_weight_and_a_correction_bias_is_not(tmp_path):
    for family, parts in (("gpt_oss", ("router.weight", "router.bias")), ("deepseek_v3", ("gate.weight",))):
        model = adopt(tiny_model(family), CPU)
        first = model.shape.layer_names[0].split(".")[2]
        assert model.router_names[: len(parts)] == tuple(f"model.layers.{first}.mlp.{part}" for part in parts)
        assert len(model.router_names) == model.shape.num_layers * len(parts)
        layout = hub_layout(save_checkpoint(tmp_path / family, family))
        assert layout.dense(routers_only=True) == layout.router_weights == {*model.router_names}
        assert all(layout.dense_shapes[name] == list(model.module.get_parameter(name).shape) for name in layout.routers)


@pytest.mark.parametrize("family", by_family(sorted(set(FAMILY_CONFIGS) - {"deepseek_v4"})))
def test_a_router_outside_of_its_module_computes_the_same_and_learns(family):
    expected, model = adopt(build(family), CPU), adopt(build(family), CPU)
    mask = torch.zeros(model.shape.num_layers, model.shape.num_experts, dtype=torch.bool)
    step = stepping(model, mask)
    inputs = {"input_ids": BATCH.input_ids, "attention_mask": BATCH.live.long(), "use_cache": False}
    with torch.no_grad():
        assert torch.equal(model.module(**inputs).logits, expected.module(**inputs).logits)
    dense, experts = take(step, ROUTERS, mask)
    assert dense
    assert not experts
    moved = [name for name, state in step.optimizer.dense.state.items() if state.step]
    assert moved
    for name in moved:
        assert step.optimizer.dense.weights[name].shape[0] >= model.shape.num_experts
