"""Grouped matrix products against one product a row, by both paths, and a whole step by the path without grouped_mm."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dist_moe.model.model import adopt
from dist_moe.moe import grouped
from dist_moe.moe.bank import train_from
from dist_moe.parallel.comm import SoloComm
from dist_moe.training.loss import LabelledLogits
from tests.tiny import tiny_model, token_ids

CPU = SoloComm(torch.device("cpu"))


@pytest.mark.parametrize("path", [grouped.GROUPED_MM, grouped.loop_mm])
@pytest.mark.parametrize("transposed", [False, True])
def test_each_row_is_multiplied_by_its_own_experts_matrix(path, transposed, monkeypatch):
    monkeypatch.setattr(grouped, "GROUPED_MM", path)
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([3, 0, 5, 1])
    rows = torch.randn(9, 16, generator=generator)
    weight = torch.randn(4, *((24, 16) if transposed else (16, 24)), generator=generator)
    weight = weight.transpose(1, 2) if transposed else weight
    found = grouped.grouped_mm(rows, weight, counts.cumsum(0).to(torch.int32))
    slot_of_row = [slot for slot, count in enumerate(counts.tolist()) for _ in range(count)]
    expected = torch.stack([row.double() @ weight[slot].double() for row, slot in zip(rows, slot_of_row, strict=True)])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_no_rows():
    out = grouped.grouped_mm(torch.zeros(0, 16), torch.ones(4, 16, 24), torch.zeros(4, dtype=torch.int32))
    assert out.shape == (0, 24)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_paths_give_equal_losses_and_gradients(dtype, monkeypatch):
    ids, results = token_ids(1), []
    for path in (grouped.GROUPED_MM, grouped.loop_mm):
        calls = []
        monkeypatch.setattr(
            grouped, "GROUPED_MM", lambda *a, path=path, calls=calls, **k: calls.append(1) or path(*a, **k)
        )
        model = adopt(tiny_model("qwen3_moe", dtype), CPU)
        train_from(model.layers, 0)
        for layer in model.layers:
            layer.grads = {e: layer.layout.views(torch.zeros(layer.layout.size)) for e in (0, 3)}
        loss = model.module(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        assert len(calls) == 4 * len(model.layers) - 1  # two forward, two backward, but none to the first layer's input
        grads = [grad for layer in model.layers for slot in layer.grads.values() for grad in slot.values()]
        results.append((loss.detach(), grads))
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-3}
    assert any(grad.any() for grad in results[0][1])
    torch.testing.assert_close(results[1][0], results[0][0], **tolerance)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(other, one, **tolerance)


class _Gathers(TorchDispatchMode):
    """Lists the shapes of tensors whose rows, of more than one float, are gathered by indexing."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.index.Tensor and args[0].is_floating_point() and args[0].shape[1:].numel() > 1:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_taken_as_by_indexing_and_so_are_their_gradients(dtype):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(7, 24, generator=generator).to(dtype).requires_grad_()
    at, grads = [3, 0, 0, 6, 3, 3], torch.randint(-8, 8, (6, 24), generator=generator).to(dtype)
    taken = grouped.take(rows, torch.tensor(at))
    taken.backward(grads)
    expected = np.zeros((7, 24), np.float32)
    np.add.at(expected, at, grads.float().numpy())  # whole numbers: sums do not round
    assert torch.equal(taken, torch.stack([rows[i] for i in at]))
    assert np.array_equal(rows.grad.float().numpy(), expected)
    assert grouped.take(rows, torch.tensor([], dtype=torch.int64)).shape == (0, 24)


def test_on_a_cpu_a_step_gathers_no_rows_by_indexing():
    model, ids = adopt(tiny_model("qwen3_moe"), CPU), token_ids(1)
    labelled = LabelledLogits(model.module)
    train_from(model.layers, 0)
    with _Gathers() as gathers, labelled.at(ids):
        logits = model.module(input_ids=ids, use_cache=False).logits
        labelled.of(logits, ids)[0].logsumexp(-1).sum().backward()
    assert gathers.shapes == []
