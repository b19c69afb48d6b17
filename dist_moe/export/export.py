"""From a run to a Hugging Face checkpoint: a copy of the base in which only the trained experts' bytes are new."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import torch

from dist_moe.files import atomic_directory
from dist_moe.moe.checkpoint import DTYPES, StoredTensor, read_tensors
from dist_moe.moe.hub import HubLayout
from dist_moe.training.save import read_experts


def export_checkpoint(base: Path, experts: Path, out: Path) -> int:
    """Write `out` from the model directory `base` and a run's trained experts; returns how many experts were written.

    Shards are copied, then patched in place: dtype, layout, header and every other tensor stay as they are. `out` must
    not exist, and gets its name when it is complete. Pickled weights beside the safetensors files are not copied.
    """
    layout = HubLayout(base, set(read_tensors(base)))
    num_experts = 0
    with atomic_directory(out) as partial:
        for file in sorted(base.iterdir()):
            if file.is_file() and file.suffix not in (".bin", ".pt", ".pth"):
                shutil.copyfile(file, partial / file.name)
        tensors = read_tensors(partial)
        for layer in range(layout.shape.num_layers):
            ids, weights = read_experts(experts, layer)
            if ids:
                for name, row, values in layout.to_hub(layer, ids, weights):
                    _patch(tensors[name], row, values)
            num_experts += len(ids)
    return num_experts


def _patch(stored: StoredTensor, row: int | None, values: torch.Tensor) -> None:
    """Overwrite a tensor's bytes, or those of one row of its first dimension."""
    shape = stored.shape if row is None else stored.shape[1:]
    assert tuple(values.shape) == shape, f"{stored.file}: {tuple(values.shape)} is not {shape}"
    data = values.to(DTYPES[stored.dtype]).contiguous().reshape(-1).view(torch.uint8).numpy()
    target = np.memmap(stored.file, np.uint8, "r+", offset=stored.start, shape=(stored.stop - stored.start,))
    at = 0 if row is None else row * len(data)
    target[at : at + len(data)] = data
    target.flush()
