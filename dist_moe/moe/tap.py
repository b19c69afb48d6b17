"""Count routing decisions where they arrive: at the experts modules, from the model's own router.

One forward pre-hook a layer adds one `bincount` of (row, expert), and one of routing weights where they are asked for;
no [T, E] tensor is kept. Counting is only allowed without gradients, so that activation checkpointing's recomputation
can never count twice. Weights are summed as whole multiples of 2^-30: integers, so the order of the sum changes no bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dist_moe.moe.discover import MoELayer
from dist_moe.moe.internals import named_arguments

GATE_UNIT = 2.0**-30
"""A row's weights are exact up to a sum of 2^23 an expert, where float64 stops to hold each multiple."""


@dataclass(slots=True)
class Tally:
    """What was counted for R rows."""

    counts_RLE: torch.Tensor
    """int64: how often expert e of layer l was in the top-k."""
    gates_RLE: torch.Tensor | None
    """int64, in units of `GATE_UNIT`: sums of the weights with which the experts' outputs are added up."""
    not_finite_R: torch.Tensor
    """int64: how many counted tokens, over all layers, the router gave a weight that is NaN or infinite."""

    @property
    def num_rows(self) -> int:
        return self.counts_RLE.shape[0]


class RoutingTap:
    """Hooks on all experts modules of a model; silent outside `count`."""

    def __init__(self, layers: tuple[MoELayer, ...], num_experts: int) -> None:
        self.num_experts = num_experts
        self._first_key_T: torch.Tensor | None = None
        self._tally: Tally | None = None
        self._handles = [
            layer.experts.register_forward_pre_hook(self._hook(layer.index), with_kwargs=True) for layer in layers
        ]
        self.num_layers = len(layers)

    def remove(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def count(
        self,
        counted_RS: torch.Tensor,
        *,
        gates: bool = False,
        num_rows: int | None = None,
        first_row: int = 0,
        row_RS: torch.Tensor | None = None,
    ) -> Iterator[Tally]:
        """Count one forward pass over the tokens that are True in `counted_RS`, and its gates if asked for.

        Further passes are added, after `next_pass` has said what counts in them. The tally has `num_rows` rows,
        as many as `counted_RS` by default. `row_RS` is as for `next_pass`.
        """
        assert not torch.is_grad_enabled(), "counting needs torch.no_grad()"
        shape_RLE = (num_rows or len(counted_RS), self.num_layers, self.num_experts)
        counts_RLE = torch.zeros(shape_RLE, dtype=torch.int64, device=counted_RS.device)
        gates_RLE = torch.zeros_like(counts_RLE) if gates else None
        self._tally = Tally(counts_RLE, gates_RLE, torch.zeros_like(counts_RLE[:, 0, 0]))
        self.next_pass(counted_RS, first_row, row_RS)
        try:
            yield self._tally
        finally:
            self._first_key_T = self._tally = None

    def next_pass(self, counted_RS: torch.Tensor, first_row: int = 0, row_RS: torch.Tensor | None = None) -> None:
        """Inside `count`: the coming pass, of any length S, adds its counted tokens to the rows from `first_row` on.

        `row_RS`, int64, says to which row each token belongs, counted from there; None: row i to the i-th.
        """
        assert self._tally is not None
        if row_RS is None:
            row_RS = torch.arange(counted_RS.shape[0], device=counted_RS.device)[:, None]
        rows_RS = torch.where(counted_RS, first_row + row_RS, self._tally.num_rows)  # uncounted: one row past the end
        self._first_key_T = rows_RS.reshape(-1) * self.num_experts

    def _hook(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._first_key_T is None or self._tally is None:
                return
            named = named_arguments(args, kwargs)
            index_Tk, weights_Tk = named["top_k_index"], named["top_k_weights"]
            tally, size = self._tally, (self._tally.num_rows + 1) * self.num_experts
            # null experts (past E, or of weight 0) go where uncounted tokens go: the row past the end
            routed = (index_Tk < self.num_experts) & (weights_Tk != 0)
            key = torch.where(routed, self._first_key_T[:, None] + index_Tk, size - self.num_experts).reshape(-1)

            def by_row(sums: torch.Tensor) -> torch.Tensor:
                return sums.view(-1, self.num_experts)[: tally.num_rows].long()

            tally.counts_RLE[:, index] += by_row(torch.bincount(key, minlength=size))
            row_T = self._first_key_T // self.num_experts
            tally.not_finite_R.scatter_add_(
                0,
                row_T.clamp(max=tally.num_rows - 1),
                (~weights_Tk.isfinite().all(1) & (row_T < tally.num_rows)).long(),
            )
            if tally.gates_RLE is not None:
                units = (weights_Tk.double() / GATE_UNIT).round().reshape(-1)
                tally.gates_RLE[:, index] += by_row(torch.bincount(key, units, minlength=size))

        return hook
