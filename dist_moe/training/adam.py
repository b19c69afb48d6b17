"""AdamW's state of one weight vector, and its update, which is torch's own functional AdamW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.adamw import adamw


@dataclass(frozen=True, slots=True)
class AdamState:
    """Flat vectors, 12 bytes per parameter, and the step count: of one expert's weights, or of one dense weight."""

    master: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    step: torch.Tensor

    @classmethod
    def new(cls, flat: torch.Tensor, device: torch.device) -> AdamState:
        """Of weights that were not updated yet: the weights in fp32 on `device`, and no moments."""
        master = flat.to(device, torch.float32, copy=True)
        zeros = torch.zeros_like(master)
        return cls(master, zeros, zeros.clone(), torch.zeros((), device=master.device))

    @property
    def num_bytes(self) -> int:
        """Of master weights and moments."""
        return self.master.nbytes + self.exp_avg.nbytes + self.exp_avg_sq.nbytes


def update(states: Sequence[AdamState], grads: Sequence[torch.Tensor], group: Mapping[str, Any]) -> None:
    """One step of each state by its gradient, with the settings of an optimizer's parameter group."""
    adamw(
        [s.master for s in states],
        [grad.to(s.master.device) for grad, s in zip(grads, states, strict=True)],
        [s.exp_avg for s in states],
        [s.exp_avg_sq for s in states],
        [],
        [s.step for s in states],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
