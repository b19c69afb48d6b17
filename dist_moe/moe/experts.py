"""Computes the experts of one layer as one autograd function: exchange, sort, grouped GEMMs over the bank, exchange.

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
- The host waits for the device once a layer where ranks exchange tokens, to know how many, and never on one rank.

Shapes: T tokens of this rank, U tokens at its experts (exchange.py), k experts per token, m rows, H hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dist_moe.moe import gate
from dist_moe.moe.bank import ATTRIBUTE, ExpertLayer
from dist_moe.moe.exchange import Exchange, Here, combine, one_at_least
from dist_moe.moe.grouped import Rows, TrainedRows, grouped_mm, known, num_columns, take, trained_rows
from dist_moe.moe.internals import use_experts

IMPLEMENTATION = "dist_moe"


class _Rows:
    """The rows of this rank's experts: a token's for each of its experts, sorted by slot."""

    def __init__(self, slot_Uk: torch.Tensor, exchange: Here | Exchange, layer: ExpertLayer) -> None:
        """A slot past the last one is nobody's."""
        self.layer = layer
        slot, order = torch.sort(slot_Uk.reshape(-1), stable=True)
        ends_S = torch.searchsorted(slot, layer.numbers(layer.num_slots, slot.dtype), right=True, out_int32=True)
        layer.ended_S += ends_S
        num_rows = known(ends_S[-1], exchange.most_pairs)
        self.most_tokens = exchange.most_tokens
        self.slot_m = slot[:num_rows]
        self.ends = ends_S[: len(layer.local)]
        # the first row is computed, also where it is a dropped pair's
        self.ends[-1:].clamp_(min=min(1, num_rows))
        self.pair_m = order[:num_rows]
        self.token_m = self.pair_m // slot_Uk.shape[1]
        self.is_one_Uk = exchange.is_one_Uk
        place = torch.empty_like(order).scatter_(0, order, layer.numbers(len(order)))
        self.row_Uk = place.view_as(slot_Uk) * self.is_one_Uk

    def per_token(self, rows_m: torch.Tensor) -> torch.Tensor:
        """[m] -> [U, k], 0 where there is no row."""
        return one_at_least(rows_m)[self.row_Uk] * self.is_one_Uk

    def combine(self, rows_mH: torch.Tensor, weights_Uk: torch.Tensor) -> torch.Tensor:
        """Weighted sum of each token's rows, [U, H]; the weight must be 0 where there is no row."""
        return combine(rows_mH, self.row_Uk, weights_Uk)

    def trained(self) -> TrainedRows | None:
        """The rows of this rank's trained experts; None: it trains none."""
        slots = [*self.layer.grads]
        if not slots:
            return None
        most = min(len(self.slot_m), self.most_tokens * len(slots))  # no token is sent to an expert twice
        return trained_rows(slots, self.ends, self.slot_m, self.layer, most)


class _Linear:
    """One of the two linear maps of the experts: `name` is its weight in the bank, with a bias in some families."""

    def __init__(self, rows: _Rows, name: str) -> None:
        self.layer, self.name, self.rows = rows.layer, name, rows
        weight = self.layer.bank[name]
        self.weight_in_out = weight if self.layer.transposed else weight.transpose(1, 2)
        self.bias = self.layer.bank.get(f"{name}_bias")

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        out = grouped_mm(rows, self.weight_in_out, self.rows.ends)
        return out if self.bias is None else out + self._per_row(self.bias)

    def input_grad(self, dout: torch.Tensor) -> torch.Tensor:
        return grouped_mm(dout, self.weight_in_out.transpose(1, 2), self.rows.ends)

    def dots(self, dout: torch.Tensor, dots_m: torch.Tensor) -> torch.Tensor:
        """dout . output of each row, [m], from the dot of the row with its gradient, so that the output need not be
        kept."""
        return dots_m if self.bias is None else dots_m + torch.linalg.vecdot(dout, self._per_row(self.bias))

    def add_weight_grads(self, trained: TrainedRows, rows: Rows, dout: Rows) -> None:
        """Add the gradients of the trained experts, from their own rows, to their buffers."""
        left, right = (rows, dout) if self.layer.transposed else (dout, rows)
        trained.add_products(*self._grads(self.name), left, right)
        if self.bias is not None:
            trained.add_sums(*self._grads(f"{self.name}_bias"), dout)

    def _grads(self, name: str) -> tuple[list[torch.Tensor], bool]:
        """The buffers of a weight's gradients, and whether they have no values yet."""
        is_first = name in self.layer.unwritten
        self.layer.unwritten.discard(name)
        return [grads[name] for grads in self.layer.grads.values()], is_first

    def _per_row(self, bias: torch.Tensor) -> torch.Tensor:
        """[slots, b] -> [m, b]."""
        return bias[self.rows.slot_m.clamp(max=len(bias) - 1)]


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TH: torch.Tensor,
        weights_Tk: torch.Tensor,
        anchor: torch.Tensor | None,
        key_Tk: torch.Tensor,
        layer: ExpertLayer,
    ) -> torch.Tensor:
        exchange = (Here if layer.comm.size == 1 else Exchange)(key_Tk, layer)
        hidden_UH, weights_Uk, slot_Uk = exchange.there(hidden_TH, weights_Tk)
        rows = _Rows(slot_Uk, exchange, layer)
        up, down = _Linear(rows, layer.up_name), _Linear(rows, "down_proj")
        inputs = take(hidden_UH, rows.token_m)
        pre = up(inputs)
        y_mH = down(gate.activate(layer, pre))
        if any(ctx.needs_input_grad):
            ctx.trained = rows.trained()
            kept = () if ctx.trained is None else ctx.trained.kept(inputs)
            ctx.save_for_backward(pre, weights_Uk, *kept)
            ctx.exchange, ctx.rows, ctx.up, ctx.down = exchange, rows, up, down
        (out_TH,) = exchange.back(rows.combine(y_mH, weights_Uk))
        return out_TH

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (dout_TH,) = grads
        pre, weights_Uk, *inputs = ctx.saved_tensors
        exchange: Here | Exchange = ctx.exchange
        rows: _Rows = ctx.rows
        up: _Linear = ctx.up
        down: _Linear = ctx.down
        trained: TrainedRows | None = ctx.trained
        weights_m1 = weights_Uk.reshape(-1)[rows.pair_m, None].to(dout_TH.dtype)
        dy_mH = take(exchange.grads_there(dout_TH), rows.token_m)
        # a routing weight scales its row's gradient after the GEMM, where it is I wide, not H, and where the
        # unscaled gradient gives the weight's own
        din = down.input_grad(dy_mH)
        dpre, dots_m, inner = gate.gradients(rows.layer, pre, din, weights_m1, trained)
        back: dict[int, torch.Tensor] = {}
        if ctx.needs_input_grad[1]:
            back[1] = rows.per_token(down.dots(dy_mH, dots_m))
        if trained is not None:
            scaled = tuple(dy * weight for dy, weight in zip(trained.of(dy_mH), trained.of(weights_m1), strict=True))
            down.add_weight_grads(trained, inner, scaled)
            up.add_weight_grads(trained, tuple(inputs), trained.of(dpre))
        if ctx.needs_input_grad[0]:
            back[0] = rows.combine(up.input_grad(dpre), rows.is_one_Uk)
        # which of both are asked for is the same on all ranks
        found = dict(zip(back, exchange.back(*back.values()), strict=True)) if back else {}
        return found.get(0), found.get(1), None, None, None


def experts_forward(
    module: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """hidden [T, H], experts and weights [T, k] -> [T, H], through the module's `ExpertLayer`."""
    layer: ExpertLayer = getattr(module, ATTRIBUTE)
    keep_Tk = top_k_weights != 0
    if layer.scores_others:
        keep_Tk = keep_Tk & (top_k_index < len(layer.key_E))
        top_k_index = top_k_index.clamp(max=len(layer.key_E))
    if layer.live_T is not None:
        keep_Tk = keep_Tk & layer.live_T[:, None]
    # most families' top-k is sorted, so what a mask leaves without weight is in the last columns: cut them, where
    # other ranks do not expect them
    k = num_columns(keep_Tk) if layer.comm.size == 1 else keep_Tk.shape[1]
    if k < keep_Tk.shape[1]:
        keep_Tk, top_k_index, top_k_weights = (x[:, :k] for x in (keep_Tk, top_k_index, top_k_weights))
    key_Tk = torch.where(keep_Tk, layer.keys[top_k_index], layer.keys[-1])
    return _Experts.apply(hidden_states, top_k_weights, layer.anchor, key_Tk, layer)


def use_banks(model: PreTrainedModel) -> None:
    """Make all experts modules of a model call `experts_forward`."""
    use_experts(model, IMPLEMENTATION, experts_forward)
