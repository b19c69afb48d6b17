"""Looks for NaN and infinite values in raw bytes; without torch, which takes seconds to import."""

from __future__ import annotations

import numpy as np

BF16_INFINITY = 0x7F80
FLOATS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}


def is_finite(data: np.ndarray, dtype: str) -> bool:
    """Whether no value is NaN or infinite.

    Args:
        data: raw bytes, uint8.
        dtype: their type as in a safetensors header; in a type of whole numbers every value is finite.
    """
    if not data.size:
        return True
    if dtype == "BF16":
        return int((data.view(np.uint16) & 0x7FFF).max()) < BF16_INFINITY
    if dtype in FLOATS:
        values = data.view(FLOATS[dtype])
        return bool(np.isfinite([values.min(), values.max()]).all())
    return True
