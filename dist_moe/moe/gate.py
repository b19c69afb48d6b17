"""What an experts layer computes between its two linear maps, and its gradient.

Shapes: m rows, X = 2I in families with a gate, else I, I inner size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dist_moe.moe import kernels
from dist_moe.moe.bank import ExpertLayer
from dist_moe.moe.grouped import Rows, TrainedRows


def activate(layer: ExpertLayer, pre_mX: torch.Tensor) -> torch.Tensor:
    """[m, X] -> [m, I]"""
    return kernels.gate(pre_mX) if _has_kernels(layer, pre_mX) else layer.activation(pre_mX)


def gradients(
    layer: ExpertLayer,
    pre_mX: torch.Tensor,
    din_mI: torch.Tensor,
    weights_m1: torch.Tensor,
    trained: TrainedRows | None,
) -> tuple[torch.Tensor, torch.Tensor, Rows]:
    """Where each row's gradient is `din` times its weight; `din` may be overwritten.

    Returns the gradient of `pre`; din . activate(pre) of each row, [m]; and activate(pre) of the trained experts'
    rows.
    """
    if _has_kernels(layer, pre_mX):
        dpre, dots_m = kernels.gate_backward(pre_mX, din_mI, weights_m1)
        return dpre, dots_m, () if trained is None else tuple(map(kernels.gate, trained.of(pre_mX)))
    dpre, dots_m, inner = (_of_swiglu if layer.is_swiglu else _of_any)(layer, pre_mX, din_mI, weights_m1)
    return dpre, dots_m, () if trained is None else trained.of(inner)


def _of_any(
    layer: ExpertLayer, pre_mX: torch.Tensor, din_mI: torch.Tensor, weights_m1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.enable_grad():
        leaf = pre_mX.detach().requires_grad_()
        activated = layer.activation(leaf)
    inner = activated.detach()
    (dpre,) = torch.autograd.grad(activated, leaf, din_mI * weights_m1)
    return dpre, torch.linalg.vecdot(din_mI, inner), inner


def _of_swiglu(
    layer: ExpertLayer, pre_mX: torch.Tensor, din_mI: torch.Tensor, weights_m1: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same bits as `_of_any`, in fewer passes over memory; `din` is overwritten."""
    size = din_mI.shape[1]
    gate, up = pre_mX.chunk(2, -1)
    activated = F.silu(gate)
    inner = activated * up
    dots_m = torch.linalg.vecdot(din_mI, inner)
    din_mI *= weights_m1
    dpre = torch.empty_like(pre_mX)
    torch.mul(din_mI, activated, out=dpre[:, size:])
    torch.ops.aten.silu_backward.grad_input(din_mI.mul_(up), gate, grad_input=dpre[:, :size])
    return dpre, dots_m, inner


def _has_kernels(layer: ExpertLayer, rows: torch.Tensor) -> bool:
    return layer.is_swiglu and kernels.usable(rows)
