"""The selective AdamW against one torch.optim.AdamW an expert, and against a stock AdamW that must leak."""

from itertools import pairwise

import pytest
import torch

from dist_moe.errors import UserError
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.optimizer import SelectiveAdamW
from tests.tiny import E, L, random_masks, tiny_model

CPU = SoloComm(torch.device("cpu"))
MESH = Mesh.one_replica(CPU)
SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
STEPS = 8


def fake_gradients(step: int, key: tuple[int, int], size: int) -> torch.Tensor:
    seed = step * 1000 + key[0] * 100 + key[1]
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def snapshot(layers, optimizer):
    """Every bit that a step may move: weights and optimizer state of every expert."""
    bits = {(layer.index, e, n): w.clone() for layer in layers for e in layer.local for n, w in layer.row(e).items()}
    for key, state in optimizer.expert_state.items():
        bits |= {(*key, name): getattr(state, name).clone() for name in ("master", "exp_avg", "exp_avg_sq", "step")}
    return bits


def changed_experts(before, after):
    return {key[:2] for key in before if not torch.equal(before[key], after[key])}


def run_step(layers, optimizer, mask, step):
    optimizer.begin(mask)
    for key, grad in zip(optimizer.active, optimizer.grad_AN, strict=True):
        grad.copy_(fake_gradients(step, key, len(grad)))
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_one_torch_adamw_per_expert_that_steps_only_when_active(dtype):
    layers = adopt(tiny_model("qwen3_moe", dtype), CPU).layers
    masks = random_masks(STEPS)
    optimizer = SelectiveAdamW(layers, masks.any(0), MESH, **SETTINGS)
    references = {key: torch.nn.Parameter(state.master.clone()) for key, state in optimizer.expert_state.items()}
    adamw = {key: torch.optim.AdamW([p], **SETTINGS, fused=True) for key, p in references.items()}
    for step, mask in enumerate(masks):
        run_step(layers, optimizer, mask, step)
        for key, parameter in references.items():
            if mask[key]:
                parameter.grad = fake_gradients(step, key, parameter.numel())
                adamw[key].step()
    assert references
    for key, parameter in references.items():
        state = optimizer.expert_state[key]
        assert torch.equal(state.master, parameter.detach())
        assert state.step == masks[:, key[0], key[1]].sum()
        expected = layers[key[0]].layout.views(parameter.detach().to(dtype))
        for name, row in layers[key[0]].row(key[1]).items():
            assert torch.equal(row, expected[name])


def test_not_one_bit_moves_outside_the_mask():
    layers = adopt(tiny_model("olmoe"), CPU).layers
    masks = random_masks(STEPS)
    optimizer = SelectiveAdamW(layers, masks.any(0), MESH, **SETTINGS, max_norm=0.5)
    for step, mask in enumerate(masks):
        before = snapshot(layers, optimizer)
        run_step(layers, optimizer, mask, step)
        inside = {tuple(pair) for pair in torch.nonzero(mask).tolist()}
        assert changed_experts(before, snapshot(layers, optimizer)) == inside


class StockAdamW(SelectiveAdamW):
    """The way it is usually tried: one AdamW over the union, zero gradients for what should not move."""

    def step(self, closure=None):
        if not hasattr(self, "stock"):
            self.stock = torch.optim.AdamW([s.master for s in self.expert_state.values()], **SETTINGS)
        for state in self.expert_state.values():
            state.master.grad = torch.zeros_like(state.master)
        for key, grad in zip(self.active, self.grad_AN, strict=True):
            self.expert_state[key].master.grad = grad
        self.stock.step()
        for (index, expert), state in self.expert_state.items():
            views = self.layers[index].layout.views(state.master)
            for name, row in self.layers[index].row(expert).items():
                row.copy_(views[name])


def test_a_stock_adamw_in_its_place_fails_the_same_check():
    layers = adopt(tiny_model("olmoe"), CPU).layers
    masks = random_masks(STEPS)
    optimizer = StockAdamW(layers, masks.any(0), MESH, **SETTINGS)
    leaks = 0
    for step, mask in enumerate(masks):
        before = snapshot(layers, optimizer)
        run_step(layers, optimizer, mask, step)
        inside = {tuple(pair) for pair in torch.nonzero(mask).tolist()}
        leaks += len(changed_experts(before, snapshot(layers, optimizer)) - inside)
    assert leaks > 0


def test_clips_by_the_global_norm_of_the_active_experts():
    layers = adopt(tiny_model("mixtral"), CPU).layers
    mask = random_masks(1)[0]
    optimizer = SelectiveAdamW(layers, mask, MESH, **SETTINGS, max_norm=0.25)
    parameters = [torch.nn.Parameter(torch.zeros(layers[0].layout.size)) for _ in optimizer.expert_state]
    for key, parameter in zip(optimizer.expert_state, parameters, strict=True):
        parameter.grad = fake_gradients(0, key, parameter.numel())
    norm = torch.nn.utils.clip_grad_norm_(parameters, 0.25)
    run_step(layers, optimizer, mask, 0)
    assert optimizer.last_norm == pytest.approx(float(norm), rel=1e-5)
    for parameter, grad in zip(parameters, optimizer.grad_AN, strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-5, atol=1e-8)


def test_an_active_expert_without_gradient_does_not_step():
    layers = adopt(tiny_model("mixtral"), CPU).layers
    mask = torch.zeros(L, E, dtype=torch.bool)
    mask[0, :2] = True
    optimizer = SelectiveAdamW(layers, mask, MESH, **SETTINGS)
    run_step(layers, optimizer, mask, 0)
    before = snapshot(layers, optimizer)
    optimizer.begin(mask)
    optimizer.grad_AN[1] = 1.0
    optimizer.step()
    assert changed_experts(before, snapshot(layers, optimizer)) == {(0, 1)}
    assert optimizer.num_stepped == 1


@pytest.mark.parametrize(("dtype", "num_bytes"), [(torch.float32, 8), (torch.bfloat16, 12)])
def test_state_is_8_bytes_a_parameter_of_the_union_beside_fp32_weights_and_12_beside_others(dtype, num_bytes):
    layers = adopt(tiny_model("mixtral", dtype), CPU).layers
    union = random_masks(2).any(0)
    optimizer = SelectiveAdamW(layers, union, MESH, lr=1e-3)
    assert {tuple(pair) for pair in torch.nonzero(union).tolist()} == set(optimizer.expert_state)
    tensors = [t for s in optimizer.expert_state.values() for t in (s.master, s.exp_avg, s.exp_avg_sq)]
    banks = {weight.untyped_storage().data_ptr() for layer in layers for weight in layer.bank.values()}
    beside = [t for t in tensors if t.untyped_storage().data_ptr() not in banks]
    assert sum(t.untyped_storage().nbytes() for t in beside) == optimizer.state_bytes
    assert optimizer.state_bytes == num_bytes * layers[0].layout.size * int(union.sum())


def test_a_gradient_that_is_not_finite_changes_nothing():
    layers = adopt(tiny_model("mixtral"), CPU).layers
    mask = random_masks(1)[0]
    optimizer = SelectiveAdamW(layers, mask, MESH, **SETTINGS)
    before = snapshot(layers, optimizer)
    optimizer.begin(mask)
    optimizer.grad_AN[0, 0] = float("nan")
    with pytest.raises(UserError, match="gradient norm is nan"):
        optimizer.step()
    assert not changed_experts(before, snapshot(layers, optimizer))


class TorchAdamW:
    """One torch.optim.AdamW an expert, kept as long as the expert is in the union."""

    def __init__(self, layers):
        self.weights = {(x.index, e): flat(x, e) for x in layers for e in x.local}
        self.adamw = {}

    def reconcile(self, union):
        self.adamw = {key: adamw for key, adamw in self.adamw.items() if union[key]}

    def step(self, mask, step):
        for key in map(tuple, torch.nonzero(mask).tolist()):
            if key not in self.adamw:
                self.adamw[key] = torch.optim.AdamW(
                    [torch.nn.Parameter(self.weights[key].float())], **SETTINGS, fused=True
                )
            (parameter,) = self.adamw[key].param_groups[0]["params"]
            parameter.grad = fake_gradients(step, key, parameter.numel())
            self.adamw[key].step()
            self.weights[key] = parameter.detach().to(self.weights[key].dtype).clone()


def flat(layer, expert):
    return torch.cat([row.reshape(-1) for row in layer.row(expert).values()])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reconciled_with_other_unions_equals_one_torch_adamw_an_expert_of_each_union(dtype):
    layers = adopt(tiny_model("qwen3_moe", dtype), CPU).layers
    early, late = random_masks(6)[:3], random_masks(6)[3:]
    phases = [early, late, early, random_masks(6)]  # back again: who returns starts from what it has learned
    unions = [masks.any(0) for masks in phases]
    for old, new in pairwise(unions[:3]):
        assert all((x & y).any() for x in (old, ~old) for y in (new, ~new))  # experts stay, leave, come
    optimizer = SelectiveAdamW(layers, unions[0], MESH, **SETTINGS)
    reference, step, stepped = TorchAdamW(layers), 0, set()
    for number, (masks, union) in enumerate(zip(phases, unions, strict=True)):
        if number:
            before = snapshot(layers, optimizer)
            optimizer.reconcile(union)
            reference.reconcile(union)
            after = snapshot(layers, optimizer)
            assert all(torch.equal(after[key], bits) for key, bits in before.items() if key in after)
        assert optimizer.expert_state.keys() == {tuple(key) for key in torch.nonzero(union).tolist()}
        for mask in masks:
            run_step(layers, optimizer, mask, step)
            reference.step(mask, step)
            stepped |= {tuple(key) for key in torch.nonzero(mask).tolist()}
            step += 1
        assert set(optimizer.changed) == stepped
        for (layer, expert), expected in reference.weights.items():
            assert torch.equal(flat(layers[layer], expert), expected)
        for key, adamw in reference.adamw.items():
            state, expected = optimizer.expert_state[key], *adamw.state.values()
            assert state.step == expected["step"]
            assert torch.equal(state.exp_avg, expected["exp_avg"])
            assert torch.equal(state.exp_avg_sq, expected["exp_avg_sq"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="weights and state are on two devices only with a GPU")
def test_state_on_the_cpu_beside_weights_on_a_gpu():
    gpu = SoloComm(torch.device("cuda"))
    layers, masks = adopt(tiny_model("qwen3_moe"), gpu).layers, random_masks(STEPS)
    optimizer = SelectiveAdamW(layers, masks.any(0), Mesh.one_replica(gpu), **SETTINGS, state_device=CPU.device)
    expected = SelectiveAdamW(adopt(tiny_model("qwen3_moe"), CPU).layers, masks.any(0), MESH, **SETTINGS)
    for step, mask in enumerate(masks):
        run_step(layers, optimizer, mask, step)
        run_step(expected.layers, expected, mask, step)
    for key, state in optimizer.expert_state.items():
        assert state.master.device.type == state.exp_avg.device.type == "cpu"
        torch.testing.assert_close(state.master, expected.expert_state[key].master, rtol=0, atol=1e-6)
        for name, row in layers[key[0]].row(key[1]).items():
            assert row.device.type == "cuda"
            assert torch.equal(row.cpu(), layers[key[0]].layout.views(state.master)[name])
