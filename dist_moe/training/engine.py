"""The interface of engines, which is all that the training step knows of them. `dist_moe.engines` implements it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch


class Engine(Protocol):
    """Runs the model, backpropagates, and steps the optimizer. The engine `local`, one process, is the reference."""

    name: str

    @property
    def is_sharded(self) -> bool:
        """Whether the dense weights are sharded over all ranks, so that all have to run their forward passes
        together."""

    def forward(self, **inputs: Any) -> torch.Tensor:
        """Logits of one micro-batch, as the module returns them."""

    def backward(self, loss: torch.Tensor) -> None:
        """Add one micro-batch's gradients. `loss` is already a part of the global mean: the engine must not rescale
        it."""

    def step(self, *, last: bool) -> None:
        """Called after every micro-batch. After the last one of a batch, step optimizer and schedule. Also calls
        `release`."""

    def release(self) -> None:
        """Called after a forward pass without a step: if dense weights are sharded, keep only this rank's shard."""

    def dense(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The dense weights and stored buffers that this rank keeps between steps, by name."""
