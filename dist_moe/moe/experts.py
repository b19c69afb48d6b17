"""Computes the experts of one layer as one autograd function: sort, all_to_all, grouped GEMMs over the bank,
all_to_all.

It is registered with transformers as the experts implementation "dist_moe". To know when reading it:

- (token, expert) pairs with weight 0, and padding tokens, are dropped: sorted last, and cut off as far as the host
  knows their number (grouped.py). Rows of dropped pairs that are left have arbitrary values after a product; nothing
  reads them but the first one, which is always computed.
- Weights are not autograd leaves. The gradients of the batch's trained experts are summed directly into the fp32
  buffers in `ExpertLayer.grads`; frozen experts have no gradient at all. Which experts these are must be known before
  the forward pass, which keeps the inputs of no others.
- All ranks run the same collectives, whichever experts they have: `ExpertLayer.anchor` requires gradients on every
  rank, so that backward runs on every rank from the batch's first trained layer on. Otherwise a rank without a trained
  expert would skip an exchange for which the others wait.
- The host waits for the device once a layer where ranks exchange rows, to know how many, and never on one rank.

Shapes: T tokens, k experts per token, n pairs kept on this rank, m rows received, H hidden size, X any width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from dist_moe.moe.bank import ATTRIBUTE, ExpertLayer
from dist_moe.moe.grouped import Rows, TrainedRows, grouped_mm, known, num_columns, trained_rows
from dist_moe.moe.internals import use_experts

IMPLEMENTATION = "dist_moe"


class _Dispatch:
    """Where every pair is sent and comes back from: an order by (rank, slot), and the sizes of the exchanges."""

    def __init__(self, index_Tk: torch.Tensor, keep_Tk: torch.Tensor, layer: ExpertLayer) -> None:
        self.layer, device = layer, index_Tk.device
        size, num_slots = layer.comm.size, layer.num_slots
        key_Tk = layer.key_E[index_Tk.clamp(max=len(layer.key_E) - 1)]
        past_end = size * num_slots  # the key of dropped pairs: the sort puts them last
        key, order = torch.sort(key_Tk.masked_fill(~keep_Tk, past_end).reshape(-1), stable=True)
        ends = torch.searchsorted(key, torch.arange(past_end, device=device), right=True)
        sent = torch.diff(ends, prepend=ends.new_zeros(1)).view(size, num_slots)
        received = layer.comm.swap_counts(sent)
        received_S = received.sum(0)
        layer.received_S += received_S
        self.by_slot: torch.Tensor | None = None
        if size == 1:  # rows are sorted by slot already
            num_sent = known(ends[-1], layer.most_pairs(index_Tk))
            self.send, self.recv = [num_sent], [num_sent]
            self.slot_m = key[:num_sent]
        else:
            self.send, self.recv = torch.stack([sent.sum(1), received.sum(1)]).tolist()
            num_sent = sum(self.send)
            slots = torch.arange(num_slots, device=device).repeat(size)
            arrived = slots.repeat_interleave(received.reshape(-1), output_size=sum(self.recv))  # by rank, then by slot
            self.slot_m, self.by_slot = torch.sort(arrived, stable=True)
            self.by_rank = torch.empty_like(self.by_slot)
            self.by_rank[self.by_slot] = torch.arange(len(self.by_slot), device=device)
        self.ends = received_S.cumsum(0)[: len(layer.local)].to(torch.int32)
        # the first row is computed, also where it is a dropped pair's
        self.ends[-1:].clamp_(min=min(1, len(self.slot_m)))
        self.pair_n = order[:num_sent]
        self.token_n = self.pair_n // index_Tk.shape[1]
        self.position_Tk = torch.zeros_like(index_Tk)
        row_n = torch.arange(num_sent, device=device)
        self.position_Tk.view(-1)[self.pair_n] = row_n.where(key[:num_sent] < past_end, 0)

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
        """Weighted sum of each token's rows, [T, H]. Dropped pairs add the first row, so their weight must be 0."""
        # gathers and sums in one pass, without a [T, k, H] tensor: ten times faster than indexing and bmm on a CPU
        rows_nH = _one_at_least(rows_nH)
        return F.embedding_bag(self.position_Tk, rows_nH, mode="sum", per_sample_weights=weights_Tk.to(rows_nH.dtype))

    def trained(self) -> TrainedRows | None:
        """The rows of this rank's trained experts; None: it trains none."""
        slots = [*self.layer.grads]
        if not slots:
            return None
        most = len(self.slot_m)
        if self.layer.comm.size == 1:  # no token is sent to an expert twice
            most = min(most, self.layer.most_tokens(len(self.position_Tk)) * len(slots))
        return trained_rows(slots, self.ends, self.slot_m, self.layer.num_slots, most)


def _one_at_least(rows: torch.Tensor) -> torch.Tensor:
    return rows if rows.shape[0] else rows.new_zeros(1, *rows.shape[1:])


class _Linear:
    """One of the two linear maps of the experts: `name` is its weight in the bank, with a bias in some families."""

    def __init__(self, dispatch: _Dispatch, name: str) -> None:
        self.layer, self.name, self.dispatch = dispatch.layer, name, dispatch
        weight = self.layer.bank[name]
        self.weight_in_out = weight if self.layer.transposed else weight.transpose(1, 2)
        self.bias = self.layer.bank.get(f"{name}_bias")

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        out = grouped_mm(rows, self.weight_in_out, self.dispatch.ends)
        return out if self.bias is None else out + self._per_row(self.bias)

    def input_grad(self, dout: torch.Tensor) -> torch.Tensor:
        return grouped_mm(dout, self.weight_in_out.transpose(1, 2), self.dispatch.ends)

    def dots(self, dout: torch.Tensor, din: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """dout . output of each row, [m, 1], computed from `din`, the gradient of `rows`, so that the output need
        not be kept."""
        dots = torch.linalg.vecdot(din, rows)
        if self.bias is not None:
            dots = dots + torch.linalg.vecdot(dout, self._per_row(self.bias))
        return dots[:, None]

    def add_weight_grads(self, trained: TrainedRows, rows: Rows, dout: Rows) -> None:
        """Add the gradients of the trained experts, from their own rows, to their buffers."""
        left, right = (rows, dout) if self.layer.transposed else (dout, rows)
        trained.add_products([grads[self.name] for grads in self.layer.grads.values()], left, right)
        if self.bias is not None:
            trained.add_sums([grads[f"{self.name}_bias"] for grads in self.layer.grads.values()], dout)

    def _per_row(self, bias: torch.Tensor) -> torch.Tensor:
        """[slots, b] -> [m, b]."""
        return bias[self.dispatch.slot_m.clamp(max=len(bias) - 1)]


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        weights_Tk: torch.Tensor,
        anchor: torch.Tensor | None,
        index_Tk: torch.Tensor,
        keep_Tk: torch.Tensor,
        layer: ExpertLayer,
    ) -> torch.Tensor:
        dispatch = _Dispatch(index_Tk, keep_Tk, layer)
        up, down = _Linear(dispatch, layer.up_name), _Linear(dispatch, "down_proj")
        rows = dispatch.to_experts(hidden_TH[dispatch.token_n])
        pre = up(rows)
        y_nH = dispatch.to_tokens(down(layer.activation(pre)))
        if any(ctx.needs_input_grad):
            ctx.trained = dispatch.trained()
            kept = () if ctx.trained is None else ctx.trained.kept(rows)
            ctx.save_for_backward(pre, weights_Tk, keep_Tk, *kept)
            ctx.dispatch, ctx.up, ctx.down = dispatch, up, down
        return dispatch.combine(y_nH, weights_Tk)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (dout_TH,) = grads
        pre, weights_Tk, keep_Tk, *rows = ctx.saved_tensors
        dispatch: _Dispatch = ctx.dispatch
        up: _Linear = ctx.up
        down: _Linear = ctx.down
        trained: TrainedRows | None = ctx.trained
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
        if trained is not None:
            scaled = tuple(dy * weight for dy, weight in zip(trained.of(dy_mH), trained.of(weights_m1), strict=True))
            down.add_weight_grads(trained, trained.of(inner), scaled)
            up.add_weight_grads(trained, tuple(rows), trained.of(dpre))
        if ctx.needs_input_grad[0]:
            dhidden = dispatch.combine(dispatch.to_tokens(up.input_grad(dpre)), keep_Tk)
        return dhidden, dweights, None, None, None, None


def experts_forward(
    module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """hidden [T, H], experts and weights [T, k] -> [T, H], through the module's `ExpertLayer`."""
    layer: ExpertLayer = getattr(module, ATTRIBUTE)
    keep_Tk = (top_k_weights != 0) & (top_k_index < len(layer.key_E))  # past E: a family's null experts
    if layer.live_T is not None:
        keep_Tk = keep_Tk & layer.live_T[:, None]
    # most families' top-k is sorted, so what a mask leaves without weight is in the last columns: cut them
    k = num_columns(keep_Tk)
    keep_Tk = keep_Tk[:, :k]
    weights_Tk = top_k_weights[:, :k] * keep_Tk
    return _Experts.apply(hidden_states, weights_Tk, layer.anchor, top_k_index[:, :k], keep_Tk, layer)


def use_banks(model: PreTrainedModel) -> None:
    """Make all experts modules of a model call `experts_forward`."""
    use_experts(model, IMPLEMENTATION, experts_forward)
