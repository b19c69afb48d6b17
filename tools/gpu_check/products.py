"""Time of the pieces of an experts layer, at the shapes of two models, by the ways there are to compute them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from dist_moe.moe import kernels
from tools.gpu_check.here import Here, guarded, relative, report

SHAPES = {"olmoe": (64, 2048, 1024, 8), "qwen3": (128, 2048, 768, 8)}
"""Experts, hidden size, inner size, experts per token."""
DRY = {"tiny": (8, 64, 32, 2)}


def run(here: Here) -> None:
    if here.cuda:
        with guarded("products", "kernels"):
            _kernels(here)
    rate = here.matmul_rate()
    for name, shape in (DRY if here.dry else SHAPES).items():
        with guarded("products", name):
            report("products", name, None, **_times(here, rate, *shape))


def _times(here: Here, rate: float, experts: int, hidden: int, inner: int, k: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each, with the share of the rate of a large product, or GB/s."""
    tokens = 64 if here.dry else 8192
    n, half = tokens * k, {"device": here.device, "dtype": torch.bfloat16}
    key, order = torch.rand(tokens, experts, device=here.device).topk(k).indices.reshape(-1).sort(stable=True)
    every = torch.arange(experts, device=here.device)
    ends = torch.searchsorted(key, every, right=True, out_int32=True)
    rows, wide = torch.randn(n, hidden, **half), torch.randn(n, 2 * inner, **half)
    up = torch.randn(experts, 2 * inner, hidden, **half)
    few = every[: max(1, experts // 16)]  # as many as a batch trains
    few_ends = torch.searchsorted(key, few, right=True, out_int32=True)
    position = torch.empty_like(order)
    position[order] = torch.arange(n, device=here.device)
    position = position.view(tokens, k)
    weights = torch.rand(tokens, k, **half)
    last, of_row, moved = int(few_ends[-1]), 2 * hidden * 2 * inner, 2 * (n + tokens) * hidden
    products: dict[str, tuple[int, Callable[[], object]]] = {
        "up": (n, lambda: F.grouped_mm(rows, up.transpose(1, 2), offs=ends)),
        "gradient of rows": (n, lambda: F.grouped_mm(wide, up, offs=ends)),
        "gradients of all weights": (n, lambda: F.grouped_mm(wide.t(), rows, offs=ends)),
        "gradients of few weights": (last, lambda: F.grouped_mm(wide[:last].t(), rows[:last], offs=few_ends)),
    }
    pre, din, weights_n1 = wide, torch.randn(n, inner, **half), torch.rand(n, 1, **half)
    gates: dict[str, tuple[int, Callable[[], object]]] = {
        "gate in torch": (3 * n * inner, lambda: _gate(pre)),
        "gradients of gate in torch": (6 * n * inner, lambda: _gate_backward(pre, din, weights_n1)),
    }
    if kernels.usable(rows):
        gates |= {
            "gate": (3 * n * inner, lambda: kernels.gate(pre)),
            "gradients of gate": (5 * n * inner, lambda: kernels.gate_backward(pre, din, weights_n1)),
            "combine": (moved // 2, lambda: kernels.combine(rows, position, weights)),
        }
    moves: dict[str, Callable[[], object]] = {
        "combine in torch": lambda: F.embedding_bag(position, rows, mode="sum", per_sample_weights=weights),
        "gather": lambda: rows[order // k],
        "sort": lambda: key.sort(stable=True),
        "ends": lambda: torch.searchsorted(key, every, right=True, out_int32=True),
    }
    found = {}
    for name, (values, call) in gates.items():
        seconds = here.seconds(call, most=0.2)
        found[name] = {"ms": seconds * 1e3, "gb_per_s": 2 * values / seconds / 1e9}
    for name, (num_rows, call) in products.items():
        seconds = here.seconds(call, most=0.2)
        found[name] = {"ms": seconds * 1e3, "of_rate": num_rows * of_row / seconds / rate}
    for name, call in moves.items():
        seconds = here.seconds(call, most=0.2)
        found[name] = {"ms": seconds * 1e3, "gb_per_s": moved / seconds / 1e9}
    return found


def _kernels(here: Here) -> None:
    """Each kernel's error against float64, where torch's own is as large; and the same bits again."""
    for dtype in (torch.float32, torch.bfloat16):
        for m, inner in ((9, 24), (700, 768), (33, 5000)):
            values = [torch.randn(m, 2 * inner), torch.randn(m, inner), torch.rand(m, 1)]
            pre, din, weights = (x.to(here.device, dtype) for x in values)
            position, shares = torch.randint(0, m, (50, 8), device=here.device), torch.rand(50, 8).to(pre)
            shares[:, 3] = 0
            bad = din.clone()
            bad[0] = torch.nan  # weight 0 goes with rows that are never read
            position[:, 3] = 0
            position[:, 4:] = position[:, 4:].clamp(min=1)
            position[:, :3] = position[:, :3].clamp(min=1)
            calls = {
                "gate": lambda p=pre: (kernels.gate(p),),
                "gradients of gate": lambda p=pre, d=din, w=weights: kernels.gate_backward(p, d, w),
                "combine": lambda b=bad, at=position, w=shares: (kernels.combine(b, at, w),),
            }
            right = {
                "gate": (_gate(pre.double()),),
                "gradients of gate": _gate_backward(pre.double(), din.double(), weights.double()),
                "combine": ((din.double()[position] * shares.double()[..., None]).sum(1),),
            }
            for name, call in calls.items():
                found, again = call(), call()
                error = max(relative(x, y) for x, y in zip(found, right[name], strict=True))
                same = all(map(torch.equal, found, again))
                ok = same and error < (1e-6 if dtype == torch.float32 else 1e-2)
                report("products", f"{name} {dtype} {m} x {inner}", ok, error=error, same_bits_again=same)


def _gate(pre: torch.Tensor) -> torch.Tensor:
    gate, up = pre.chunk(2, -1)
    return F.silu(gate) * up


def _gate_backward(pre: torch.Tensor, din: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaf = pre.detach().requires_grad_()
    activated = _gate(leaf)
    (dpre,) = torch.autograd.grad(activated, leaf, din * weights)
    return dpre, torch.linalg.vecdot(din, activated.detach())
