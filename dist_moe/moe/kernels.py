"""Kernels for a GPU, in Triton: what an experts layer computes beside its products, one pass over memory each.

torch does the same in several passes, with a tensor between any two of them (`gate.py`, `grouped.py`), and is what
these kernels are tested against. They round to the rows' type where torch does, have no atomic operations and no
choice of sizes by timing, so the same rows give the same bits, in each process anew.

Shapes: T tokens, k experts per token, m rows, I inner size, H hidden size.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import torch

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of torch for CPUs come without it
    triton = None

MOST = 2048
"""Values of a row that a program has in registers."""


def usable(tensor: torch.Tensor) -> bool:
    """Whether there are kernels for a tensor's device."""
    return triton is not None and tensor.is_cuda


def gate(pre: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of gate and up side by side: [m, 2I] -> [m, I]."""
    m, inner = pre.shape[0], pre.shape[1] // 2
    out = pre.new_empty(m, inner)
    if m:
        block = _block(inner)
        _gate[m, triton.cdiv(inner, block)](out, pre.contiguous(), inner, BLOCK=block)
    return out


def gate_backward(pre: torch.Tensor, din: torch.Tensor, weights_m1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of `gate`, where each row's gradient is `din` [m, I] times its weight [m, 1].

    Returns the gradient of `pre`, [m, 2I], and din . gate(pre) of each row, [m].
    """
    m, inner = din.shape
    dpre, dots = torch.empty_like(pre), din.new_empty(m)
    if m:
        args = dpre, dots, pre.contiguous(), din.contiguous(), weights_m1.contiguous()
        _gate_backward[m,](*args, INNER=inner, BLOCK=_block(inner))
    return dpre, dots


def combine(rows: torch.Tensor, position_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
    """Weighted sum of each token's rows, [m, H] -> [T, H]; a row of weight 0 is not read."""
    (num_tokens, k), hidden = position_Tk.shape, rows.shape[1]
    out = rows.new_empty(num_tokens, hidden)
    if num_tokens:
        block = _block(hidden)
        args = out, rows.contiguous(), position_Tk.contiguous(), weights_Tk.contiguous()
        _combine[num_tokens, triton.cdiv(hidden, block)](*args, hidden, K=k, BLOCK=block)
    return out


def _block(size: int) -> int:
    return min(MOST, triton.next_power_of_2(size))


if triton is not None:

    @triton.jit
    def _gate(out, pre, inner, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = at < inner
        kind = out.dtype.element_ty
        g = tl.load(pre + row * 2 * inner + at, mask=inside, other=0.0).to(tl.float32)
        u = tl.load(pre + row * 2 * inner + inner + at, mask=inside, other=0.0).to(tl.float32)
        s = (g * tl.sigmoid(g)).to(kind).to(tl.float32)
        tl.store(out + row * inner + at, (s * u).to(kind), mask=inside)

    @triton.jit
    def _gate_backward(dpre, dots, pre, din, weights, INNER: tl.constexpr, BLOCK: tl.constexpr):
        row = tl.program_id(0).to(tl.int64)
        kind = dpre.dtype.element_ty
        weight = tl.load(weights + row).to(tl.float32)
        dot = tl.zeros((BLOCK,), tl.float32)
        for start in range(0, INNER, BLOCK):
            at = start + tl.arange(0, BLOCK)
            inside = at < INNER
            g = tl.load(pre + row * 2 * INNER + at, mask=inside, other=0.0).to(tl.float32)
            u = tl.load(pre + row * 2 * INNER + INNER + at, mask=inside, other=0.0).to(tl.float32)
            d = tl.load(din + row * INNER + at, mask=inside, other=0.0).to(tl.float32)
            sigmoid = tl.sigmoid(g)
            s = (g * sigmoid).to(kind).to(tl.float32)
            dot += d * (s * u).to(kind).to(tl.float32)
            d = (d * weight).to(kind).to(tl.float32)
            ds = (d * u).to(kind).to(tl.float32)
            tl.store(dpre + row * 2 * INNER + at, (ds * sigmoid * (1 + g * (1 - sigmoid))).to(kind), mask=inside)
            tl.store(dpre + row * 2 * INNER + INNER + at, (d * s).to(kind), mask=inside)
        tl.store(dots + row, tl.sum(dot).to(dots.dtype.element_ty))

    @triton.jit
    def _combine(out, rows, position, weights, hidden, K: tl.constexpr, BLOCK: tl.constexpr):
        token = tl.program_id(0).to(tl.int64)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), tl.float32)
        for j in tl.static_range(K):
            weight = tl.load(weights + token * K + j).to(tl.float32)
            row = tl.load(position + token * K + j).to(tl.int64)
            stop = tl.where(weight != 0, hidden, 0)
            value = tl.load(rows + row * hidden + at, mask=at < stop, other=0.0).to(tl.float32)
            total += weight * value
        tl.store(out + token * hidden + at, total.to(out.dtype.element_ty), mask=at < hidden)
