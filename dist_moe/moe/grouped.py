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

from dist_moe.moe.bank import ExpertLayer

Rows = tuple[torch.Tensor, ...]
"""Rows of the trained experts: one tensor for each of them, or one of all."""


def is_free(tensor: torch.Tensor) -> bool:
    """Whether the host reads a tensor's values without waiting for a device."""
    return tensor.device.type == "cpu"


def known(number: torch.Tensor, most: int) -> int:
    """A number as the host may know it: itself where that is free, else the most that it can be."""
    return int(number) if is_free(number) else most


def take(rows_TX: torch.Tensor, index_m: torch.Tensor) -> torch.Tensor:
    """rows[index], [m, X]. On a CPU, where indexing copies value by value, in less than half of its time."""
    return rows_TX.index_select(0, index_m) if is_free(rows_TX) else rows_TX[index_m]


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

    def add_products(self, grads: Sequence[torch.Tensor], is_first: bool, left: Rows, right: Rows) -> None:
        """Add left^T right of each expert to its gradient, fp32 [a, b], or write it there if it is the first; of an
        expert without rows it is 0."""
        for grad, a, b in zip(grads, left, right, strict=True):
            if not len(a):
                _add(grad, None, is_first)
            elif grad.dtype != a.dtype:
                _add(grad, a.t() @ b, is_first)
            elif is_first:
                torch.mm(a.t(), b, out=grad)
            else:
                grad.addmm_(a.t(), b)

    def add_sums(self, grads: Sequence[torch.Tensor], is_first: bool, rows: Rows) -> None:
        """Likewise the sum of each expert's rows to its gradient, fp32 [b]."""
        for grad, mine in zip(grads, rows, strict=True):
            _add(grad, mine.sum(0, dtype=grad.dtype) if len(mine) else None, is_first)


class GatheredRows(TrainedRows):
    """On a GPU: one gather of all of them, whose sizes stay on the device, and one product."""

    def __init__(self, slots: Sequence[int], slot_m: torch.Tensor, layer: ExpertLayer, most: int) -> None:
        """`slot_m` is each row's slot, the layer's `num_slots` where it has none. `most`: no more rows are trained
        ones'."""
        rank_S = torch.full((layer.num_slots + 1,), len(slots), dtype=torch.int16)
        rank_S[torch.tensor(slots)] = torch.arange(len(slots), dtype=torch.int16)
        rank_S = rank_S.to(slot_m.device, non_blocking=True)
        rank_m, order = torch.sort(rank_S.index_select(0, slot_m), stable=True)
        self.index = order[:most]
        every = layer.numbers(len(slots), rank_m.dtype)
        self.ends = torch.searchsorted(rank_m, every, right=True, out_int32=True)

    def of(self, rows: torch.Tensor) -> Rows:
        return (rows[self.index],)

    def kept(self, rows: torch.Tensor) -> Rows:
        return self.of(rows)

    def add_products(self, grads: Sequence[torch.Tensor], is_first: bool, left: Rows, right: Rows) -> None:
        products = F.grouped_mm(left[0].t(), right[0], offs=self.ends) if len(self.index) else None
        _add_all(grads, products, is_first)

    def add_sums(self, grads: Sequence[torch.Tensor], is_first: bool, rows: Rows) -> None:
        # a product with ones adds in the same order each time; eight columns, as its strides are multiples of 16 bytes
        ones = rows[0].new_ones(len(rows[0]), 8)
        columns = F.grouped_mm(rows[0].t(), ones, offs=self.ends)[..., 0] if len(ones) else None
        _add_all(grads, columns, is_first)


def _add(grad: torch.Tensor, found: torch.Tensor | None, is_first: bool) -> None:
    """Add what was found to a gradient, or write it there if it is the first; None: it is 0."""
    if found is not None:
        _ = grad.copy_(found) if is_first else grad.add_(found)
    elif is_first:
        grad.zero_()


def _add_all(grads: Sequence[torch.Tensor], found: torch.Tensor | None, is_first: bool) -> None:
    """Likewise to several, [n, ...] together: in one kernel where they lie in memory at equal distances."""
    block = _block(grads)
    if block is not None:
        _add(block, found, is_first)
    elif found is not None:
        (torch._foreach_copy_ if is_first else torch._foreach_add_)([*grads], [*found.to(grads[0].dtype).unbind(0)])
    elif is_first:
        torch._foreach_zero_([*grads])


def _block(grads: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Buffers [...] at equal distances in memory as one, [n, ...]; None: they are not."""
    first, places = grads[0], [grad.data_ptr() for grad in grads]
    step = places[1] - places[0] if len(places) > 1 else first.nbytes
    if step < first.nbytes or places != [places[0] + i * step for i in range(len(places))]:
        return None
    return first.as_strided((len(grads), *first.shape), (step // first.element_size(), *first.stride()))


def trained_rows(
    slots: Sequence[int], ends: torch.Tensor, slot_m: torch.Tensor, layer: ExpertLayer, most: int
) -> TrainedRows:
    """The rows of the experts in these slots of a layer, among rows that are sorted by slot."""
    return TrainedRows(slots, ends) if is_free(ends) else GatheredRows(slots, slot_m, layer, most)
