"""Time of the pieces of an experts layer, at the shapes of two models, by the ways there are to compute them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from tools.gpu_check.here import Here, guarded, report

SHAPES = {"olmoe": (64, 2048, 1024, 8), "qwen3": (128, 2048, 768, 8)}
"""Experts, hidden size, inner size, experts per token."""
DRY = {"tiny": (8, 64, 32, 2)}


def run(here: Here) -> None:
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
    moves: dict[str, Callable[[], object]] = {
        "combine": lambda: F.embedding_bag(position, rows, mode="sum", per_sample_weights=weights),
        "gather": lambda: rows[order // k],
        "sort": lambda: key.sort(stable=True),
        "ends": lambda: torch.searchsorted(key, every, right=True, out_int32=True),
    }
    found = {}
    for name, (num_rows, call) in products.items():
        seconds = here.seconds(call, most=0.2)
        found[name] = {"ms": seconds * 1e3, "of_rate": num_rows * of_row / seconds / rate}
    for name, call in moves.items():
        seconds = here.seconds(call, most=0.2)
        found[name] = {"ms": seconds * 1e3, "gb_per_s": moved / seconds / 1e9}
    return found
