"""The engine `local`: one process, plain PyTorch. It is the reference that the other engines are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler


class LocalEngine:
    """Forward, backward and step, with nothing in between."""

    name = "local"
    is_sharded = False

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, schedule: LRScheduler) -> None:
        self.module, self.optimizer, self.schedule = module, optimizer, schedule

    def forward(self, **inputs: Any) -> torch.Tensor:
        return self.module(**inputs).logits

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, *, last: bool) -> None:
        if last:
            self.optimizer.step()
            self.schedule.step()

    def release(self) -> None:
        return

    def dense(self) -> Iterator[tuple[str, torch.Tensor]]:
        return stored_tensors(self.module)


def stored_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers. Other buffers, as of rotary embeddings, may depend on the length of a row."""
    yield from module.named_parameters()
    for prefix, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                yield f"{prefix}.{name}", buffer
