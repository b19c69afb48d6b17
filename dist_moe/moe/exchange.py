"""Brings tokens to the ranks of their experts, and what the experts make of them back.

A token goes once to each rank that has any of its experts, with all its routing weights. That rank repeats it for its
own experts, and sends back one row: the sum over them. So what is sent does not grow with the number of experts a
token has on one rank.

`Here` is for one rank, `Exchange` for several. Both have the same methods, so callers need not ask which it is.

Shapes: T tokens of this rank, U tokens that have arrived at it (T on one rank), k experts per token, X any width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dist_moe.moe import kernels
from dist_moe.moe.bank import ExpertLayer
from dist_moe.moe.grouped import take

INTEGER = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a value, what has as many."""


class Here:
    """All experts are on this rank: nothing is moved."""

    def __init__(self, key_Tk: torch.Tensor, layer: ExpertLayer) -> None:
        """Keys as in `Exchange`."""
        self.most_tokens = layer.most_tokens(len(key_Tk))
        self.most_pairs = layer.most_pairs(*key_Tk.shape)
        self._slot_Tk = key_Tk
        self.is_one_Uk = key_Tk < layer.num_slots

    def there(
        self, hidden_TH: torch.Tensor, weights_Tk: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return hidden_TH, weights_Tk * self.is_one_Uk, self._slot_Tk

    def grads_there(self, dout_TH: torch.Tensor) -> torch.Tensor:
        return dout_TH

    def back(self, *parts_UX: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return parts_UX


class Exchange:
    """The exchanges of one layer's pass: counts and tokens there, results back; then gradients there and back."""

    most_tokens: int
    """No more tokens arrive than this, as far as the host knows."""
    most_pairs: int
    """They have no more experts here than this, together."""
    is_one_Uk: torch.Tensor
    """bool: which of their experts are here; after `there`."""

    def __init__(self, key_Tk: torch.Tensor, layer: ExpertLayer) -> None:
        """Every key is that of `ExpertLayer.key_E`; a pair that is dropped has the first one past all of them.

        The host waits for the device here, once.
        """
        self.comm, self.num_slots, self._key_Tk = layer.comm, layer.num_slots, key_Tk
        size, k = layer.comm.size, key_Tk.shape[1]
        rank_Tk = (key_Tk // layer.num_slots).sort(1).values  # `size` is nowhere
        is_again_Tk = torch.zeros_like(rank_Tk, dtype=torch.bool)
        is_again_Tk[:, 1:] = rank_Tk[:, 1:] == rank_Tk[:, :-1]
        width = min(k, size)
        to_Tw = rank_Tk.masked_fill(is_again_Tk, size).sort(1).values[:, :width]  # each rank once
        to, order = torch.sort(to_Tw.reshape(-1), stable=True)
        counts_R2 = torch.stack([_counts(to, size), _counts(rank_Tk.reshape(-1).sort().values, size)], 1)
        both = torch.cat([counts_R2, layer.comm.swap_counts(counts_R2)], 1)
        self.send, _, self.recv, pairs = both.t().tolist()
        self.most_tokens, self.most_pairs = sum(self.recv), sum(pairs)
        order = order[: sum(self.send)]
        self._token_n = order // width
        self._is_sent_Tw = to_Tw < size
        self._row_Tw = torch.zeros_like(to_Tw, dtype=torch.int64)
        self._row_Tw.view(-1)[order] = torch.arange(len(order), device=order.device)

    def there(
        self, hidden_TH: torch.Tensor, weights_Tk: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What has arrived: hidden states [U, H], routing weights [U, k], and slots [U, k], which are `num_slots` where
        the expert is on another rank, or nowhere."""
        integer = INTEGER[hidden_TH.element_size()]
        assert self.comm.size * self.num_slots <= torch.iinfo(integer).max, "keys too large for their columns"
        key_Tk = self._key_Tk.to(integer).view(hidden_TH.dtype)  # the same bits: no arithmetic is done with them
        widths = [hidden_TH.shape[1], *(2 * key_Tk.shape[1:])]
        columns_TX = torch.cat([hidden_TH, weights_Tk.to(hidden_TH.dtype), key_Tk], 1)
        hidden_UH, weights_Uk, key_Uk = self._sent(columns_TX).split(widths, 1)
        slot_Uk = key_Uk.contiguous().view(integer).to(self._key_Tk.dtype) - self.comm.rank * self.num_slots
        self.is_one_Uk = (slot_Uk >= 0) & (slot_Uk < self.num_slots)
        is_none_Uk = ~self.is_one_Uk
        return hidden_UH, weights_Uk.masked_fill(is_none_Uk, 0), slot_Uk.masked_fill(is_none_Uk, self.num_slots)

    def grads_there(self, dout_TH: torch.Tensor) -> torch.Tensor:
        """[T, H] -> [U, H]."""
        return self._sent(dout_TH)

    def back(self, *parts_UX: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[U, X] each, of one data type -> [T, X], summed over the ranks that a token was sent to."""
        widths = [part.shape[1] for part in parts_UX]
        rows_nX = self.comm.swap_rows(torch.cat(parts_UX, 1), self.recv, self.send)
        return combine(rows_nX, self._row_Tw, self._is_sent_Tw).split(widths, 1)

    def _sent(self, rows_TX: torch.Tensor) -> torch.Tensor:
        return self.comm.swap_rows(take(rows_TX, self._token_n), self.send, self.recv)


def combine(rows_nX: torch.Tensor, row_Tk: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
    """Weighted sums [T, X] of rows; `row_Tk` says which. Where there is none it is the first, so its weight must be
    0."""
    rows_nX = one_at_least(rows_nX)
    weights_Tk = weights_Tk.to(rows_nX.dtype)
    if kernels.usable(rows_nX):
        return kernels.combine(rows_nX, row_Tk, weights_Tk)
    # gathers and sums in one pass, without a [T, k, X] tensor: ten times faster than indexing and bmm on a CPU
    return F.embedding_bag(row_Tk, rows_nX, mode="sum", per_sample_weights=weights_Tk)


def one_at_least(rows: torch.Tensor) -> torch.Tensor:
    """Rows to index where there may be none."""
    return rows if rows.shape[0] else rows.new_zeros(1, *rows.shape[1:])


def _counts(sorted_n: torch.Tensor, size: int) -> torch.Tensor:
    """How often each of 0 ... size - 1 is there, [size]."""
    ends = torch.searchsorted(sorted_n, torch.arange(size, dtype=sorted_n.dtype, device=sorted_n.device), right=True)
    return torch.diff(ends, prepend=ends.new_zeros(1))
