"""Products of rows that are sorted by expert, and what the host may know about them.

A GPU runs behind its host. Where the host reads a value it waits for all work before it, in each layer anew, so sizes
that depend on the routing stay on the device there, and tensors are as large as these sizes can be. On a CPU reading is
free, and exact sizes save work. Only this file knows the difference.

Shapes: T tokens, k experts per token, m rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

Rows = tuple[torch.Tensor, ...]
"""Rows of the trained experts: one tensor for each of them, or one of all."""


def is_free(tensor: torch.Tensor) -> bool:
    """Whether the host reads a tensor's values without waiting for a device."""
    return tensor.device.type == "cpu"


def known(number: torch.Tensor, most: int) -> int:
    """A number as the host may know it: itself where that is free, else the most that it can be."""
    return int(number) if is_free(number) else most


def num_columns(keep_Tk: torch.Tensor) -> int:
    """How many of the first columns have all that is kept: at least one, and all k where the host cannot know."""
    if not is_free(keep_Tk):
        return keep_Tk.shape[1]
    return max((column + 1 for column, used in enumerate(keep_Tk.any(0).tolist()) if used), default=1)


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
    """rows [m, a], sorted by slot, slot s ending at ends[s] (int32) @ weight [slots, a, b] -> [m, b]; no autograd.

    Rows past the last end get arbitrary values.
    """
    if rows.shape[0] == 0:
        return rows.new_zeros(0, weight.shape[-1])
    return GROUPED_MM(rows, weight, offs=ends)


class TrainedRows:
    """Which of the rows are those of trained experts: on a CPU a slice for each of these."""

    def __init__(self, slots: Sequence[int], ends: torch.Tensor) -> None:
        """`ends` as for `grouped_mm`."""
        bounds = [0, *ends.tolist()]
        self.slices = [slice(bounds[slot], bounds[slot + 1]) for slot in slots]

    def of(self, rows: torch.Tensor) -> Rows:
        """The trained experts' among all rows [m, X]."""
        return tuple(rows[mine] for mine in self.slices)

    def kept(self, rows: torch.Tensor) -> Rows:
        """The same, to be kept for the backward pass: without the memory of the others where these are the larger
        part."""
        chosen = self.of(rows)
        is_small = 2 * sum(map(len, chosen)) < len(rows)
        return tuple(map(torch.clone, chosen)) if is_small else chosen

    def add_products(self, grads: Sequence[torch.Tensor], left: Rows, right: Rows) -> None:
        """Add left^T right of each expert to its gradient, fp32 [a, b]; an expert without rows adds nothing."""
        for grad, a, b in zip(grads, left, right, strict=True):
            if not len(a):
                continue
            if grad.dtype == a.dtype:
                grad.addmm_(a.t(), b)
            else:
                grad += a.t() @ b

    def add_sums(self, grads: Sequence[torch.Tensor], rows: Rows) -> None:
        """Add the sum of each expert's rows to its gradient, fp32 [b]."""
        for grad, mine in zip(grads, rows, strict=True):
            if len(mine):
                grad += mine.sum(0, dtype=grad.dtype)


class GatheredRows(TrainedRows):
    """On a GPU: one gather of all of them, whose sizes stay on the device, and one product."""

    def __init__(self, slots: Sequence[int], slot_m: torch.Tensor, num_slots: int, most: int) -> None:
        """`slot_m` is each row's slot, `num_slots` where it has none. `most`: no more rows are trained ones'."""
        rank_S = torch.full((num_slots + 1,), len(slots))
        rank_S[torch.tensor(slots)] = torch.arange(len(slots))
        rank_m, order = torch.sort(rank_S.to(slot_m.device, non_blocking=True)[slot_m], stable=True)
        self.index = order[:most]
        every = torch.arange(len(slots), device=slot_m.device)
        self.ends = torch.searchsorted(rank_m, every, right=True, out_int32=True)

    def of(self, rows: torch.Tensor) -> Rows:
        return (rows[self.index],)

    def kept(self, rows: torch.Tensor) -> Rows:
        return self.of(rows)

    def add_products(self, grads: Sequence[torch.Tensor], left: Rows, right: Rows) -> None:
        if len(self.index):
            product = F.grouped_mm(left[0].t(), right[0], offs=self.ends)
            torch._foreach_add_(list(grads), list(product.to(grads[0].dtype).unbind(0)))

    def add_sums(self, grads: Sequence[torch.Tensor], rows: Rows) -> None:
        # a product with ones adds in the same order each time; eight columns, as its strides are multiples of 16 bytes
        ones = rows[0].new_ones(len(rows[0]), 8)
        columns = [grad.new_zeros(*grad.shape, 8) for grad in grads]
        self.add_products(columns, rows, (ones,))
        torch._foreach_add_(list(grads), [column[:, 0] for column in columns])


def trained_rows(
    slots: Sequence[int], ends: torch.Tensor, slot_m: torch.Tensor, num_slots: int, most: int
) -> TrainedRows:
    """The rows of the experts in these slots, among rows that are sorted by slot."""
    return TrainedRows(slots, ends) if is_free(ends) else GatheredRows(slots, slot_m, num_slots, most)
