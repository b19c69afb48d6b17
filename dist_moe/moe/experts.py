"""Computes the experts of one layer as one autograd function: sort, all_to_all, grouped GEMMs over the bank,
all_to_all.

It is registered with transformers as the experts implementation "dist_moe". To know when reading it:

- (token, expert) pairs with weight 0, and padding tokens, are dropped first.
- Weights are not autograd leaves. The gradients of the batch's trained experts are summed directly into the fp32
  buffers in `ExpertLayer.grads`; frozen experts have no gradient at all.
- All ranks run the same collectives, whichever experts they have: `ExpertLayer.anchor` requires gradients on every
  rank, so that backward runs on every rank from the batch's first trained layer on. Otherwise a rank without a trained
  expert would skip an exchange for which the others wait.

Shapes: T tokens, k experts per token, n pairs kept on this rank, m rows received, H hidden size, X any width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from dist_moe.moe.bank import ATTRIBUTE, ExpertLayer
from dist_moe.moe.grouped import grouped_mm
from dist_moe.moe.internals import use_experts

IMPLEMENTATION = "dist_moe"


class _Linear:
    """One of the two linear maps of the experts: `name` is its weight in the bank, with a bias in some families."""

    def __init__(self, layer: ExpertLayer, name: str, ends: torch.Tensor) -> None:
        weight = layer.bank[name]
        self.weight_in_out = weight if layer.transposed else weight.transpose(1, 2)
        self.bias = layer.bank.get(f"{name}_bias")
        self.layer, self.name, self.ends = layer, name, ends

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        out = grouped_mm(rows, self.weight_in_out, self.ends)
        return out if self.bias is None else out + self._per_row(self.bias)

    def input_grad(self, dout: torch.Tensor) -> torch.Tensor:
        return grouped_mm(dout, self.weight_in_out.transpose(1, 2), self.ends)

    def dots(self, dout: torch.Tensor, din: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """dout . output of each row, [m, 1], computed from `din`, the gradient of `rows`, so that the output need
        not be kept."""
        dots = torch.linalg.vecdot(din, rows)
        if self.bias is not None:
            dots = dots + torch.linalg.vecdot(dout, self._per_row(self.bias))
        return dots[:, None]

    def add_weight_grads(self, slot: int, rows: torch.Tensor, dout: torch.Tensor) -> None:
        """Add the gradients of one trained expert, from its own rows, to its buffers."""
        left, right = (rows, dout) if self.layer.transposed else (dout, rows)
        grads = self.layer.grads[slot]
        grad = grads[self.name]
        if grad.dtype == left.dtype:
            grad.addmm_(left.t(), right)
        else:
            grad += left.t() @ right
        if self.bias is not None:
            grads[f"{self.name}_bias"] += dout.sum(0, dtype=grad.dtype)

    def _per_row(self, bias: torch.Tensor) -> torch.Tensor:
        """[slots, b] -> [m, b]."""
        counts = torch.diff(self.ends, prepend=self.ends.new_zeros(1))
        return bias.repeat_interleave(counts, dim=0)


class _Dispatch:
    """Where every pair is sent and comes back from: an order by (rank, slot), and the sizes of the exchanges."""

    def __init__(self, index_Tk: torch.Tensor, keep_Tk: torch.Tensor, num_kept: int, layer: ExpertLayer) -> None:
        size, num_slots = layer.comm.size, layer.num_slots
        key_Tk = layer.key_E[index_Tk.clamp(max=len(layer.key_E) - 1)]
        past_end = size * num_slots  # the key of dropped pairs: the sort puts them last
        key, order = torch.sort(key_Tk.masked_fill(~keep_Tk, past_end).reshape(-1), stable=True)
        sent = torch.bincount(key, minlength=past_end + 1)[:-1]
        self.pair_n = order[:num_kept]
        self.token_n = self.pair_n // index_Tk.shape[1]
        self.position_Tk = torch.zeros_like(index_Tk)
        self.position_Tk.view(-1)[self.pair_n] = torch.arange(num_kept, device=order.device)
        received = layer.comm.swap_counts(sent.view(size, num_slots))
        received_S = received.sum(0)
        layer.received_S += received_S
        self.ends = received_S.cumsum(0)[: len(layer.local)].to(torch.int32)
        self.layer = layer
        self.send, self.recv = [num_kept], [num_kept]
        self.by_slot: torch.Tensor | None = None
        if size > 1:  # rows arrive by rank, then by slot; with one rank they are sorted by slot already
            self.send, self.recv = torch.stack([sent.view(size, num_slots).sum(1), received.sum(1)]).tolist()
            slots = torch.arange(num_slots, device=order.device).repeat(size)
            self.by_slot = torch.sort(slots.repeat_interleave(received.reshape(-1)), stable=True)[1]
            self.by_rank = torch.empty_like(self.by_slot)
            self.by_rank[self.by_slot] = torch.arange(len(self.by_slot), device=order.device)

    def to_experts(self, rows_nX: torch.Tensor) -> torch.Tensor:
        """[n, X] in pair order -> [m, X] sorted by slot on the experts' rank."""
        rows = self.layer.comm.swap_rows(rows_nX, self.send, self.recv)
        return rows if self.by_slot is None else rows[self.by_slot]

    def to_tokens(self, rows_mX: torch.Tensor) -> torch.Tensor:
        """The reverse: [m, X] -> [n, X]."""
        rows = rows_mX if self.by_slot is None else rows_mX[self.by_rank]
        return self.layer.comm.swap_rows(rows, self.recv, self.send)

    def per_token(self, rows_n: torch.Tensor) -> torch.Tensor:
        """[n] -> [T, k]; dropped pairs get the value of an arbitrary row."""
        return _one_at_least(rows_n)[self.position_Tk]

    def combine(self, rows_nH: torch.Tensor, weights_Tk: torch.Tensor) -> torch.Tensor:
        """Weighted sum of each token's rows, [T, H]. Dropped pairs add an arbitrary row, so their weight must be 0."""
        # gathers and sums in one pass, without a [T, k, H] tensor: ten times faster than indexing and bmm on a CPU
        rows_nH = _one_at_least(rows_nH)
        return F.embedding_bag(self.position_Tk, rows_nH, mode="sum", per_sample_weights=weights_Tk.to(rows_nH.dtype))


def _one_at_least(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.shape[0] else rows.new_zeros(1, *rows.shape[1:])


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        weights_Tk: torch.Tensor,
        anchor: torch.Tensor | None,
        index_Tk: torch.Tensor,
        keep_Tk: torch.Tensor,
        num_kept: int,
        layer: ExpertLayer,
    ) -> torch.Tensor:
        dispatch = _Dispatch(index_Tk, keep_Tk, num_kept, layer)
        up, down = _Linear(layer, layer.up_name, dispatch.ends), _Linear(layer, "down_proj", dispatch.ends)
        rows = dispatch.to_experts(hidden_TH[dispatch.token_n])
        pre = up(rows)
        y_nH = dispatch.to_tokens(down(layer.activation(pre)))
        ctx.save_for_backward(rows, pre, weights_Tk, keep_Tk)
        ctx.dispatch, ctx.up, ctx.down = dispatch, up, down
        return dispatch.combine(y_nH, weights_Tk)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (dout_TH,) = grads
        rows, pre, weights_Tk, keep_Tk = ctx.saved_tensors
        dispatch: _Dispatch = ctx.dispatch
        up: _Linear = ctx.up
        down: _Linear = ctx.down
        weights_n1 = weights_Tk.reshape(-1)[dispatch.pair_n, None].to(dout_TH.dtype)
        dy_mH, weights_m1 = dispatch.to_experts(dout_TH[dispatch.token_n]), dispatch.to_experts(weights_n1)
        # a routing weight scales its row's gradient after the GEMM, where it is I wide, not H, and where the
        # unscaled gradient gives the weight's own
        din = down.input_grad(dy_mH)
        with torch.enable_grad():
            leaf = pre.detach().requires_grad_()
            activated = dispatch.layer.activation(leaf)
        inner = activated.detach()
        dhidden = dweights = None
        if ctx.needs_input_grad[1]:
            dots_n = dispatch.to_tokens(down.dots(dy_mH, din, inner)).squeeze(1)
            dweights = dispatch.per_token(dots_n).mul(keep_Tk).to(weights_Tk.dtype)
        (dpre,) = torch.autograd.grad(activated, leaf, din * weights_m1)
        if dispatch.layer.grads:
            bounds = [0, *dispatch.ends.tolist()]
            for slot in dispatch.layer.grads:
                mine = slice(bounds[slot], bounds[slot + 1])
                if mine.start < mine.stop:  # an expert without rows adds nothing
                    down.add_weight_grads(slot, inner[mine], dy_mH[mine] * weights_m1[mine])
                    up.add_weight_grads(slot, rows[mine], dpre[mine])
        if ctx.needs_input_grad[0]:
            dhidden = dispatch.combine(dispatch.to_tokens(up.input_grad(dpre)), keep_Tk)
        return dhidden, dweights, None, None, None, None, None


def experts_forward(
    module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """hidden [T, H], experts and weights [T, k] -> [T, H], through the module's `ExpertLayer`."""
    layer: ExpertLayer = getattr(module, ATTRIBUTE)
    keep_Tk = (top_k_weights != 0) & (top_k_index < len(layer.key_E))  # past E: a family's null experts
    if layer.live_T is not None:
        keep_Tk = keep_Tk & layer.live_T[:, None]
    # most families' top-k is sorted, so what a mask leaves without weight is in the last columns: cut them
    num_kept_k = keep_Tk.sum(0).tolist()
    k = max([column + 1 for column, num in enumerate(num_kept_k) if num], default=1)
    keep_Tk = keep_Tk[:, :k]
    weights_Tk = top_k_weights[:, :k] * keep_Tk
    index_Tk = top_k_index[:, :k]
    return _Experts.apply(hidden_states, weights_Tk, layer.anchor, index_Tk, keep_Tk, sum(num_kept_k), layer)


def use_banks(model: PreTrainedModel) -> None:
    """Make all experts modules of a model call `experts_forward`."""
    use_experts(model, IMPLEMENTATION, experts_forward)
