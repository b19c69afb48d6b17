"""Grouped matrix product: multiplies each row by the matrix of its own expert."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def loop_mm(rows: torch.Tensor, weight: torch.Tensor, *, offs: torch.Tensor) -> torch.Tensor:
    """The result of `F.grouped_mm`, computed in a loop over experts, for versions of torch without it."""
    out = rows.new_empty(rows.shape[0], weight.shape[-1])
    start = 0
    for matrix, end in zip(weight.unbind(0), offs.tolist(), strict=True):
        torch.mm(rows[start:end], matrix, out=out[start:end])
        start = end
    return out


GROUPED_MM = getattr(F, "grouped_mm", loop_mm)


def grouped_mm(rows: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """rows [m, a], sorted by slot, slot s ending at ends[s] (int32) @ weight [slots, a, b] -> [m, b]; no autograd."""
    if rows.shape[0] == 0:
        return rows.new_zeros(0, weight.shape[-1])
    return GROUPED_MM(rows, weight, offs=ends)
