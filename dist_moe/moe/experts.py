"""The experts of one layer as one autograd function: sort once, exchange, grouped GEMMs over the bank, exchange back.

Registered with transformers as the experts implementation "dist_moe". Facts to know:

- (token, expert) pairs of weight 0 and padding tokens are dropped before any work.
- Weights are not autograd leaves. Gradients of the active experts are summed straight into the fp32 buffers that
  `ExpertLayer.grads` names; inactive experts have no gradient at all.
- All ranks run the same collectives whatever their own experts do: backward runs on every rank from the batch's first
  trained layer on, because `ExpertLayer.anchor` requires gradients there on every rank. Otherwise a rank without
  a trained expert would skip the exchange that its peers wait for.

Shapes: T tokens, k experts a token, n pairs kept on this rank, m rows received, H hidden.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

from dist_moe.moe.bank import ATTRIBUTE, ExpertLayer
from dist_moe.moe.internals import use_experts

IMPLEMENTATION = "dist_moe"


def _inverse(order: torch.Tensor) -> torch.Tensor:
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(order.numel(), device=order.device)
    return inverse


def _grouped(rows: torch.Tensor, weight: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """rows [m, a], sorted by slot, slot s ending at ends[s] @ weight [slots, a, b] -> [m, b]."""
    if rows.shape[0] == 0:
        return rows.new_zeros(0, weight.shape[-1])
    return F.grouped_mm(rows, weight, offs=ends)


class _Linear:
    """One of the experts' two linear maps over the bank: `name` is its weight, with a bias where the family has one."""

    def __init__(self, layer: ExpertLayer, name: str, ends: torch.Tensor) -> None:
        weight = layer.bank[name]
        self.weight_in_out = weight if layer.transposed else weight.transpose(1, 2)
        self.bias = layer.bank.get(f"{name}_bias")
        self.layer, self.name, self.ends = layer, name, ends

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        out = _grouped(rows, self.weight_in_out, self.ends)
        return out if self.bias is None else out + self.bias.repeat_interleave(self._counts(), dim=0)

    def input_grad(self, dout: torch.Tensor) -> torch.Tensor:
        return _grouped(dout, self.weight_in_out.transpose(1, 2), self.ends)

    def add_weight_grads(self, rows: torch.Tensor, dout: torch.Tensor) -> None:
        """Sum the active experts' gradients into their buffers; an expert without rows adds nothing."""
        bounds = [0, *self.ends.tolist()]
        for slot, grads in self.layer.grads.items():
            mine = slice(bounds[slot], bounds[slot + 1])
            if mine.start == mine.stop:
                continue
            left, right = (rows[mine], dout[mine]) if self.layer.transposed else (dout[mine], rows[mine])
            grad = grads[self.name]
            if grad.dtype == left.dtype:
                grad.addmm_(left.t(), right)
            else:
                grad += left.t() @ right
            if self.bias is not None:
                grads[f"{self.name}_bias"] += dout[mine].sum(0, dtype=grad.dtype)

    def _counts(self) -> torch.Tensor:
        return torch.diff(self.ends, prepend=self.ends.new_zeros(1))


class _Dispatch:
    """Where every pair goes and comes from: rank-major order by (owner, slot), and the sizes of the exchanges."""

    def __init__(self, index_Tk: torch.Tensor, keep_Tk: torch.Tensor, layer: ExpertLayer) -> None:
        num_tokens, k = index_Tk.shape
        pair = torch.nonzero(keep_Tk.reshape(-1)).squeeze(-1)
        expert = index_Tk.reshape(-1)[pair]
        watched = expert if layer.masked_T is None else expert[layer.masked_T[pair // k]]
        layer.dispatched_E += torch.bincount(watched, minlength=layer.dispatched_E.numel())
        key, order = torch.sort(layer.key_E[expert], stable=True)
        self.pair_n = pair[order]
        self.token_n = self.pair_n // k
        position = torch.zeros(num_tokens * k, dtype=torch.int64, device=pair.device)
        position[self.pair_n] = torch.arange(self.pair_n.numel(), device=pair.device)
        self.position_Tk = position.view(num_tokens, k)
        size = layer.comm.size
        sent = torch.bincount(key, minlength=size * layer.num_slots).view(size, layer.num_slots)
        received = layer.comm.swap_counts(sent)
        self.send, self.recv = sent.sum(1).tolist(), received.sum(1).tolist()
        slots = torch.arange(layer.num_slots, device=pair.device).repeat(size)
        # rows arrive by rank, then by slot: one stable sort by slot puts each expert's rows together
        self.by_slot = torch.sort(slots.repeat_interleave(received.reshape(-1)), stable=True)[1]
        self.by_rank = _inverse(self.by_slot)
        self.ends = received.sum(0).cumsum(0)[: len(layer.local)].to(torch.int32)
        self.layer = layer

    def to_experts(self, rows_nH: torch.Tensor) -> torch.Tensor:
        """[n, H] in pair order -> [m, H] sorted by slot on the experts' rank."""
        return self.layer.comm.swap_rows(rows_nH, self.send, self.recv)[self.by_slot]

    def to_tokens(self, rows_mH: torch.Tensor) -> torch.Tensor:
        """The way back: [m, H] -> [n, H]."""
        return self.layer.comm.swap_rows(rows_mH[self.by_rank], self.recv, self.send)

    def per_token(self, rows_nH: torch.Tensor) -> torch.Tensor:
        """[n, H] -> [T, k, H]; a dropped pair shows an arbitrary row, which its weight of 0 must cancel."""
        if rows_nH.shape[0] == 0:
            rows_nH = rows_nH.new_zeros(1, rows_nH.shape[1])
        return rows_nH[self.position_Tk]


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
        up, down = _Linear(layer, layer.up_name, dispatch.ends), _Linear(layer, "down_proj", dispatch.ends)
        rows = dispatch.to_experts(hidden_TH[dispatch.token_n])
        pre = up(rows)
        y_nH = dispatch.to_tokens(down(layer.activation(pre)))
        y_TkH = dispatch.per_token(y_nH)
        ctx.save_for_backward(rows, pre, y_nH if weights_Tk.requires_grad else None, weights_Tk, keep_Tk)
        ctx.dispatch, ctx.up, ctx.down = dispatch, up, down
        return torch.bmm(weights_Tk[:, None].to(y_TkH.dtype), y_TkH).squeeze(1)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (dout_TH,) = grads
        rows, pre, y_nH, weights_Tk, keep_Tk = ctx.saved_tensors
        dispatch: _Dispatch = ctx.dispatch
        dy_nH = dout_TH[dispatch.token_n]
        dweights = None
        if ctx.needs_input_grad[1]:
            dots = torch.linalg.vecdot(dy_nH, y_nH)[:, None]
            dweights = dispatch.per_token(dots).squeeze(-1).mul(keep_Tk).to(weights_Tk.dtype)
        dy_nH = dy_nH * weights_Tk.reshape(-1)[dispatch.pair_n, None].to(dy_nH.dtype)
        dy_mH = dispatch.to_experts(dy_nH)
        with torch.enable_grad():
            leaf = pre.detach().requires_grad_()
            activated = dispatch.layer.activation(leaf)
        (dpre,) = torch.autograd.grad(activated, leaf, ctx.down.input_grad(dy_mH))
        ctx.down.add_weight_grads(activated.detach(), dy_mH)
        ctx.up.add_weight_grads(rows, dpre)
        dhidden = None
        if ctx.needs_input_grad[0]:
            drows = dispatch.to_tokens(ctx.up.input_grad(dpre))
            dhidden = torch.bmm(keep_Tk[:, None].to(drows.dtype), dispatch.per_token(drows)).squeeze(1)
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
    k = int((keep_Tk.any(0) * torch.arange(1, keep_Tk.shape[1] + 1, device=keep_Tk.device)).max())
    keep_Tk = keep_Tk[:, :k]
    weights_Tk = top_k_weights[:, :k] * keep_Tk
    return _Experts.apply(hidden_states, weights_Tk, layer.anchor, top_k_index[:, :k], keep_Tk, layer)


def use_banks(model: PreTrainedModel) -> None:
    """Send all experts modules of a model through `experts_forward`."""
    use_experts(model, IMPLEMENTATION, experts_forward)
