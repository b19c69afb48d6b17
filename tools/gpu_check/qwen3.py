"""Our step at the shape of Qwen3-30B-A3B: all layers, or as many as this device's memory holds."""

from __future__ import annotations

import torch

from tools.gpu_check.here import Here
from tools.gpu_check.ours import run_largest

GIB_PER_LAYER, GIB_BESIDE = 2.15, 12
"""Of a layer: 1.13 of experts, .68 of state for a tenth of them, and .3 of activations of four rows."""


def run(here: Here) -> None:
    layers = None
    if here.cuda:
        free = torch.cuda.mem_get_info()[0] / 2**30
        layers = min(48, int((free - GIB_BESIDE) / GIB_PER_LAYER))
    sizes = [(layers, 2), (layers, 1), (layers and layers * 3 // 4, 1)]
    run_largest(here, "qwen3", "qwen3", sizes, ("torch", "liger") if here.liger else ("torch",))
