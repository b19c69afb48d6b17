"""Computes how strongly the loss of one answer depends on each expert: the mean absolute gradient of its weights.

The gradients of all layers would not fit in memory. The layers therefore share one buffer: the backward pass visits
them one after the other, and before the next one the gradients of the last are reduced to one number per expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dist_moe.data.tokens import IGNORED, Encoded, collate
from dist_moe.model.model import MoEModel
from dist_moe.moe.bank import ExpertLayer
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.rows import map_rows


def expert_gradients(model: MoEModel, row: Encoded) -> torch.Tensor:
    """Mean of |d loss / d weight| over each expert's weights: float32 [L, E]; 0 for an expert that got no token.

    The loss is the mean cross-entropy of the row's response, which has at least one token. `model` must hold all
    experts on this rank; it is left unchanged.
    """
    device = model.layers[0].comm.device
    batch = collate([row], pad_id=0).to(device)
    with _AbsoluteMeans(model).collected() as means_LE, torch.enable_grad():
        logits = model.module(**batch.inputs).logits
        F.cross_entropy(logits[0, :-1].float(), batch.labels[0, 1:], ignore_index=IGNORED).backward()
    return means_LE


def gradient_table(model: MoEModel, rows: Sequence[Encoded], comm: Comm) -> np.ndarray:
    """`expert_gradients` of each unsafe row: float32 [R, L, E], the same on every rank. Zeros for safe rows.

    All ranks call it with the same rows. An unsafe row without a response has no loss, and zeros too.
    """
    shape_LE = (model.shape.num_layers, model.shape.num_experts)
    chosen = [i for i, row in enumerate(rows) if row.unsafe and row.response_ids]
    found = map_rows(
        [rows[i] for i in chosen],
        lambda some: {"gradients": torch.stack([expert_gradients(model, row) for row in some])},
        comm,
        results={"gradients": (torch.float32, shape_LE)},
        length=lambda row: row.num_tokens,
        budget=1,
    )
    table_RLE = np.zeros((len(rows), *shape_LE), np.float32)
    table_RLE[chosen] = found["gradients"].cpu().numpy()
    return table_RLE


class _AbsoluteMeans:
    """The gradients of one layer at a time, in a buffer that all layers share."""

    def __init__(self, model: MoEModel) -> None:
        self.model = model
        size = max(len(layer.local) * layer.layout.size for layer in model.layers)
        self.buffer = torch.zeros(size, device=model.layers[0].comm.device)
        self.means_LE = self.buffer.new_zeros(model.shape.num_layers, model.shape.num_experts)
        self.current: ExpertLayer | None = None

    @contextmanager
    def collected(self) -> Iterator[torch.Tensor]:
        """Yields the means [L, E]; one backward pass inside the block fills them, and they are complete when the block
        ends."""
        layers = self.model.layers
        hooks = [layer.module.register_forward_hook(self._hook(layer)) for layer in layers]
        try:
            with self.model.batch(first_layer=0):
                for layer in layers:  # which experts have gradients must be known before the forward pass
                    layer.grads = {slot: {} for slot in range(len(layer.local))}
                yield self.means_LE
                self._leave()
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, layer: ExpertLayer) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def enter(_: torch.Tensor) -> None:
            self._leave()
            self.current = layer
            layer.grads = {slot: layer.layout.views(flat) for slot, flat in enumerate(self._gradients_of(layer))}

        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            output.register_hook(enter)  # called when all later layers are done, right before this one's backward pass

        return hook

    def _leave(self) -> None:
        layer, self.current = self.current, None
        if layer is not None:
            gradients = self._gradients_of(layer)
            self.means_LE[layer.index, layer.local] = gradients.abs_().mean(1)
            gradients.zero_()
            layer.grads = {}

    def _gradients_of(self, layer: ExpertLayer) -> torch.Tensor:
        """[local experts, weights of one]"""
        return self.buffer[: len(layer.local) * layer.layout.size].view(len(layer.local), layer.layout.size)
