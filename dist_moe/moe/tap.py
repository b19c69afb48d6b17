"""Count routing decisions where they arrive: at the experts modules, from the model's own router.

One forward pre-hook a layer adds one `bincount` of (row, expert); no [T, E] tensor is kept. Counting is only allowed
without gradients, so that activation checkpointing's recomputation can never count twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dist_moe.moe.discover import MoELayer


class RoutingTap:
    """Hooks on all experts modules of a model; silent outside `count`."""

    def __init__(self, layers: tuple[MoELayer, ...], num_experts: int) -> None:
        self.num_experts = num_experts
        self._first_key_T: torch.Tensor | None = None
        self._counts_RLE: torch.Tensor | None = None
        for layer in layers:
            layer.experts.register_forward_pre_hook(self._hook(layer.index), with_kwargs=True)
        self.num_layers = len(layers)

    @contextmanager
    def count(self, counted_RS: torch.Tensor) -> Iterator[torch.Tensor]:
        """Count one forward pass of R rows of S tokens over the tokens that are True in `counted_RS`.

        Yields `counts_RLE` int64 [R, L, E], filled during the pass: how often expert e of layer l was in the top-k.
        Further passes of the same rows are added, after `next_pass` has said what counts in them.
        """
        assert not torch.is_grad_enabled(), "counting needs torch.no_grad()"
        self._counts_RLE = torch.zeros(
            counted_RS.shape[0], self.num_layers, self.num_experts, dtype=torch.int64, device=counted_RS.device
        )
        self.next_pass(counted_RS)
        yield self._counts_RLE
        self._first_key_T = self._counts_RLE = None

    def next_pass(self, counted_RS: torch.Tensor) -> None:
        """Inside `count`: the tokens of the coming pass that count; it may have another length S."""
        num_rows = counted_RS.shape[0]
        rows = torch.arange(num_rows, device=counted_RS.device)[:, None].expand_as(counted_RS)
        rows = torch.where(counted_RS, rows, num_rows)  # uncounted tokens: one row past the end
        self._first_key_T = rows.reshape(-1) * self.num_experts

    def _hook(self, index: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._first_key_T is None or self._counts_RLE is None:
                return
            named = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)) | kwargs
            index_Tk, weights_Tk = named["top_k_index"], named["top_k_weights"]
            num_rows = self._counts_RLE.shape[0]
            past_end = num_rows * self.num_experts
            # null experts (past E, or of weight 0) go where uncounted tokens go: the row past the end
            routed = (index_Tk < self.num_experts) & (weights_Tk != 0)
            key = torch.where(routed, self._first_key_T[:, None] + index_Tk, past_end)
            counts = torch.bincount(key.reshape(-1), minlength=past_end + self.num_experts)
            self._counts_RLE[:, index] += counts[:past_end].view(num_rows, self.num_experts)

        return hook
