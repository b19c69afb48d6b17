"""The bytes of a tensor on disk as values in memory; what needs no values needs no torch."""

from __future__ import annotations

import numpy as np
import torch

from dist_moe.weights.directory import StoredTensor

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types of weights that can be trained, by their names in a safetensors header."""


def as_tensor(data: np.ndarray, dtype: str) -> torch.Tensor:
    """Raw bytes, uint8, as values of one of `DTYPES`, in a flat copy."""
    return torch.from_numpy(data.copy()).view(DTYPES[dtype])


def read_tensor(stored: StoredTensor) -> torch.Tensor:
    """A tensor of one of `DTYPES`, as a copy in memory."""
    return as_tensor(stored.bytes(), stored.dtype).view(stored.shape)


def finite(values: torch.Tensor) -> bool:
    """Whether no value is NaN or infinite; needs no memory."""
    if not values.is_floating_point() or not values.numel():
        return True
    return bool(torch.stack(values.aminmax()).isfinite().all())
