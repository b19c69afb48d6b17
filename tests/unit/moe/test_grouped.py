"""Grouped matrix products against one product a row, by both paths, and a whole step by the path without grouped_mm."""

import pytest
import torch

from dist_moe.model.model import adopt
from dist_moe.moe import grouped
from dist_moe.moe.bank import train_from
from dist_moe.parallel.comm import SoloComm
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
