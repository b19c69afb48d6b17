"""What an experts layer keeps for the backward pass, counted by torch's own hooks, against shapes."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from dist_moe.model.model import adopt
from dist_moe.moe.experts import experts_forward
from dist_moe.parallel.comm import SoloComm
from tests.tiny import tiny_model

T = 40


def kept_bytes(layer, hidden_TH, index_Tk, weights_Tk):
    """Of tensors' memory, each counted once, without that of the routing weights' product with their mask."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        out = experts_forward(layer.module, hidden_TH, index_Tk, weights_Tk)
    assert out.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values() if tensor.is_floating_point())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [(), (2,), (1, 5)])
def test_rows_of_trained_experts_only(dtype, trained):
    layer = adopt(tiny_model("qwen3_moe").to(dtype), SoloComm(torch.device("cpu"))).layers[0]
    num_experts, hidden, item = len(layer.key_E), layer.bank["down_proj"].shape[1], layer.flat_SN.element_size()
    up = layer.bank["gate_up_proj"].shape[1]
    generator = torch.Generator().manual_seed(0)
    index_Tk = torch.rand(T, num_experts, generator=generator).argsort(1)[:, :2]
    hidden_TH = torch.randn(T, hidden, generator=generator).to(dtype).requires_grad_()
    weights_Tk = torch.full((T, 2), 0.5, dtype=dtype).requires_grad_()
    with_grads = torch.zeros(len(layer.local), layer.layout.size)
    layer.grads = {layer.local.index(e): layer.layout.views(with_grads[i]) for i, e in enumerate(trained)}
    layer.anchor = torch.zeros((), requires_grad=True)
    rows = sum(int((index_Tk == expert).sum()) for expert in trained)
    assert bool(rows) == bool(trained)
    assert 2 * rows < 2 * T
    of_all_rows = 2 * T * up * item
    of_weights = 2 * T * item
    assert kept_bytes(layer, hidden_TH, index_Tk, weights_Tk) == of_all_rows + of_weights + rows * hidden * item
