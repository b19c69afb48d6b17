"""What is installed, which machine this is, how fast it copies and multiplies, and what torch refuses."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib import metadata
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch.optim.adamw import adamw

from tools.gpu_check.here import Here, guarded, relative, report

PACKAGES = ("torch", "triton", "transformers", "accelerate", "deepspeed", "numpy", "zarr", "safetensors", "pydantic")


def run(here: Here) -> None:
    found = {name: metadata.version(name) for name in PACKAGES if _is_there(name)}
    report("versions", "packages", None, python=platform.python_version(), **found)
    facts: dict[str, object] = {"cuda": torch.version.cuda}
    if here.cuda:
        free, total = torch.cuda.mem_get_info()
        facts |= {"device": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()}
        facts |= {"free_gib": free / 2**30, "total_gib": total / 2**30}
    report("versions", "machine", here.cuda or here.dry, **facts)
    with guarded("versions", "rates"):
        n = 2**18 if here.dry else 2**30
        a, b = (torch.zeros(n, dtype=torch.int32, device=here.device) for _ in range(2))
        copied = 8 * n / here.seconds(lambda: b.copy_(a))
        report("versions", "rates", None, matmul_tflops=here.matmul_rate() / 1e12, copy_tb_per_s=copied / 1e12)
    for name, call in _operators(here.device).items():
        with guarded("versions", name):
            error = call()
            here.sync()
            report("versions", name, error < 1e-2, error=error)


def _is_there(name: str) -> bool:
    return bool([*metadata.distributions(name=name)])


def _operators(device: torch.device) -> dict[str, Callable[[], float]]:
    """What the package asks of torch's kernels, each with its error, so that a refusal has a name."""
    half = {"device": device, "dtype": torch.bfloat16}
    ends = torch.tensor([5, 5, 20, 24], dtype=torch.int32, device=device)  # one expert without a row
    bounds = [0, 5, 5, 20, 24]
    rows, weight, wide = torch.randn(24, 64, **half), torch.randn(4, 96, 64, **half), torch.randn(24, 96, **half)
    parts = [slice(*pair) for pair in pairwise(bounds)]

    def forward() -> float:
        right = [rows[part].double() @ w.double().t() for part, w in zip(parts, weight, strict=True)]
        return relative(F.grouped_mm(rows, weight.transpose(1, 2), offs=ends), torch.cat(right))

    def weight_gradients() -> float:
        right = [wide[part].double().t() @ rows[part].double() for part in parts]
        return relative(F.grouped_mm(wide.t(), rows, offs=ends), torch.stack(right))

    def fused_adamw() -> float:
        tensors = [[torch.ones(7, device=device)] for _ in range(4)]
        settings = {"beta1": 0.9, "beta2": 0.99, "lr": 1e-3, "weight_decay": 0.1, "eps": 1e-8}
        adamw(*tensors, [], [torch.zeros((), device=device)], fused=True, amsgrad=False, maximize=False, **settings)
        return float(tensors[0][0].isnan().any())

    def foreach_norm() -> float:
        found = torch._foreach_norm([*rows.float()], dtype=torch.float64)
        return relative(torch.stack(found), rows.double().norm(dim=1))

    def foreach_copy() -> float:
        targets = [torch.empty(64, **half) for _ in rows]
        torch._foreach_copy_(targets, [*rows.float()])
        return relative(torch.stack(targets), rows)

    def embedding_bag() -> float:
        index = torch.tensor([[1, 2], [9, 0]], device=device)
        found = F.embedding_bag(index, rows, mode="sum", per_sample_weights=torch.ones_like(index).to(rows.dtype))
        return relative(found, rows.double()[index].sum(1))

    return {
        "grouped_mm": forward,
        "grouped_mm of weight gradients": weight_gradients,
        "fused AdamW": fused_adamw,
        "foreach norm in float64": foreach_norm,
        "foreach copy to bf16": foreach_copy,
        "embedding_bag in bf16": embedding_bag,
    }
