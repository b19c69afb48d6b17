"""What an engine is to the masked step. The implementations are in `dist_moe.engines`; the step knows only this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch


class Engine(Protocol):
    """Runs the model, backpropagates, and steps the optimizer. One process, `local`, defines what is right."""

    name: str

    def forward(self, **inputs: Any) -> torch.Tensor:
        """Logits of one micro-batch, as the module gives them."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add one micro-batch's gradients. `loss` is a part of the global mean: the engine must not rescale it."""

    def step(self, *, last: bool) -> None:
        """After every micro-batch; after the batch's last one the optimizer and the schedule step. It releases."""

    def release(self) -> None:
        """After a forward pass without a step: of dense weights that are sharded each rank keeps its share only."""

    def dense(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What this rank keeps between steps of the module's own weights and stored buffers, by name."""
