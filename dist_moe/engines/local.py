"""One process, plain torch: the oracle that the other engines are compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler


class LocalEngine:
    """Forward, backward, step, with nothing in between."""

    name = "local"

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
