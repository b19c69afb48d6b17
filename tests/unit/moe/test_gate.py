"""The gate's gradient, in fewer passes than autograd's and with the same bits."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dist_moe.moe import gate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [0, 1, 37])
def test_it_is_autograds_bit_for_bit(dtype, num_rows):
    draw = torch.Generator().manual_seed(num_rows)
    pre = (3 * torch.randn(num_rows, 2 * 24, generator=draw)).to(dtype)
    din = torch.randn(num_rows, 24, generator=draw).to(dtype)
    weights = torch.rand(num_rows, 1, generator=draw).to(dtype)
    leaf = pre.clone().requires_grad_()
    left, right = leaf.chunk(2, -1)
    activated = F.silu(left) * right
    activated.backward(din * weights)
    expected_dots = torch.linalg.vecdot(din, activated.detach())
    trained = SimpleNamespace(of=lambda rows: (rows[1:5], rows[7:]))

    dpre, dots, inner = gate.gradients(SimpleNamespace(is_swiglu=True), pre.clone(), din.clone(), weights, trained)

    assert torch.equal(dpre, leaf.grad)
    assert torch.equal(dots, expected_dots)
    assert [part.tolist() for part in inner] == [activated[1:5].tolist(), activated[7:].tolist()]
