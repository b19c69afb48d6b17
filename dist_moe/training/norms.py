"""Norms of gradients, as exact as sums in float64, at the speed of fp32."""

from __future__ import annotations

import torch

from dist_moe.moe.grouped import is_free

PART = 1024
"""Squares of so many values are summed in fp32, which errs by 1e-7 of the norm; the parts in float64."""
VANISHING = 1e-12
"""A norm above this has no part in squares that vanish."""


def row_norms(rows_AN: torch.Tensor) -> torch.Tensor:
    """Euclidean norm of each row, fp32 [A, N] -> float64 [A]; 0 only where all values are."""
    cut = rows_AN.shape[1] // PART * PART
    whole_An = torch.linalg.vector_norm(rows_AN[:, :cut].unflatten(1, (-1, PART)), dim=2)
    rest_A1 = torch.linalg.vector_norm(rows_AN[:, cut:], dim=1, keepdim=True)
    norms_A = torch.linalg.vector_norm(torch.cat([whole_An, rest_A1], 1), dim=1, dtype=torch.float64)
    # squares of values below 1e-23 vanish in fp32; the largest value is never above the norm
    if is_free(norms_A) and bool((norms_A > VANISHING).all()):
        return norms_A
    return norms_A.maximum(rows_AN.amax(1).maximum(-rows_AN.amin(1)))
