"""A part of what training has changed: between a base weight and the trained one."""

from __future__ import annotations

import torch


def scaled(base: torch.Tensor, trained: torch.Tensor, alpha: float, dtype: torch.dtype) -> torch.Tensor:
    """base + alpha * (trained - base), in float64, rounded once to `dtype`.

    Args:
        base: values before training, in any floating point type.
        trained: values after it, of the same shape.
        alpha: the share of the change, from 0 to 1.
        dtype: of the checkpoint.

    Returns:
        At 0 the base, and at 1 the trained values, bit for bit, as are at any alpha those that training left alone.
    """
    if alpha in (0, 1):
        return (trained if alpha else base).to(dtype)
    # one operation after the other: a fused one would round differently on another device
    between = (trained.double() - base.double()) * alpha + base.double()
    return _nearest(torch.where(trained == base, base.double(), between), dtype)


def _nearest(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Float64 values in `dtype`, each rounded to the nearest, ties to even.

    Torch comes to 16 bits by way of float32, and so rounds twice. Rounding to odd in between (Boldo and Melquiond 2008)
    makes that one rounding: where float32 is not exact, its last bit is set.
    """
    if dtype == torch.float64:
        return values
    single = values.float()
    if dtype == torch.float32:
        return single
    bits, again = single.view(torch.int32), single.double()
    outwards = torch.where(again.abs() < values.abs(), 1, -1).to(torch.int32)
    is_even_and_not_exact = (again != values) & (bits % 2 == 0)
    return torch.where(is_even_and_not_exact, bits + outwards, bits).view(torch.float32).to(dtype)
