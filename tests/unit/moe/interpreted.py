"""The kernels in Triton's interpreter, against float64, and compiled for GPUs; a process of its own, without a GPU."""

import sys

import torch
import triton
from torch.nn.functional import silu
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dist_moe.moe import kernels


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def gated(pre):
    gate, up = pre.chunk(2, -1)
    return silu(gate) * up


def interpret():
    """float32 alone: the interpreter cuts where bfloat16 rounds."""
    torch.manual_seed(0)
    for m, inner in ((1, 1), (5, 24), (7, 1500), (3, 2500)):
        pre, din, weights = torch.randn(m, 2 * inner), torch.randn(m, inner), torch.rand(m, 1)
        assert relative(kernels.gate(pre), gated(pre.double())) < 1e-6
        leaf = pre.double().requires_grad_()
        (dpre,) = torch.autograd.grad(gated(leaf), leaf, din.double() * weights.double())
        found, dots = kernels.gate_backward(pre, din, weights)
        assert relative(found, dpre) < 1e-6
        assert relative(dots, (din.double() * gated(pre.double())).sum(1)) < 1e-5
        rows, position, shares = torch.randn(m + 1, inner), torch.randint(0, m, (9, 3)), torch.rand(9, 3)
        rows[m] = torch.nan  # of a pair that was dropped: it has weight 0
        position[4, 1], shares[4, 1] = m, 0
        expected = (rows.double().nan_to_num()[position] * shares.double()[..., None]).sum(1)
        assert relative(kernels.combine(rows, position, shares), expected) < 1e-6
    assert kernels.gate(torch.empty(0, 8)).shape == (0, 4)
    assert [x.shape for x in kernels.gate_backward(torch.empty(0, 8), torch.empty(0, 4), torch.empty(0, 1))] == [
        (0, 8),
        (0,),
    ]


def compile_for(capability):
    """All kernels, from pointers and sizes that are multiples of 16: memory is read 16 bytes at a time."""
    rows = {"BLOCK": 1024}
    for kernel, constants, numbers in (
        (kernels._gate, rows, {"inner"}),
        (kernels._gate_backward, rows | {"INNER": 768}, set()),
        (kernels._combine, rows | {"K": 8}, {"hidden"}),
    ):
        types = {"position": "*i64"} | dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
        signature = {name: types.get(name, "*bf16") for name in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind != "constexpr"}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
        assert "ld.global.v4.b32" in compiled.asm["ptx"], kernel
        assert compiled.asm["cubin"]


if __name__ == "__main__":
    if sys.argv[1] == "interpret":
        interpret()
    else:
        compile_for(int(sys.argv[1]))
