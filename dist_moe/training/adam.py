"""AdamW's state of one weight vector, and its update, which is torch's own functional AdamW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.optim.adamw import adamw

from dist_moe.training.checkpoint_index import STATE

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class AdamState:
    """Flat fp32 vectors and the step count: of one expert's weights, or of one dense weight."""

    master: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    step: torch.Tensor
    is_weight: bool = field(kw_only=True)
    """Whether `master` is the memory of the weight itself, which then needs no copy."""

    @classmethod
    def new(cls, flat: torch.Tensor, device: torch.device) -> AdamState:
        """Of weights that were not updated yet, without moments: in fp32 on `device` the weights themselves are their
        master weights, else a copy is."""
        is_weight = flat.dtype == torch.float32 and flat.device.type == device.type
        master = flat if is_weight else flat.to(device, torch.float32, copy=True)
        zeros = torch.zeros_like(master)
        return cls(master, zeros, zeros.clone(), torch.zeros((), device=master.device), is_weight=is_weight)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All of it by name, as checkpoints hold it."""
        return {name: getattr(self, name) for name in STATE}

    @property
    def num_bytes(self) -> int:
        """Beside the weights: 8 bytes a parameter of moments, and 4 of master weights where these are copies."""
        return self.exp_avg.nbytes + self.exp_avg_sq.nbytes + (0 if self.is_weight else self.master.nbytes)


def were_updated(states: Mapping[K, AdamState]) -> dict[K, AdamState]:
    """Those that were updated at least once, in order. The host waits once, however many there are."""
    if not states:
        return {}
    steps = torch.stack([state.step for state in states.values()]).tolist()
    return {key: state for (key, state), step in zip(states.items(), steps, strict=True) if step > 0}


def update(
    states: Sequence[AdamState], grads: Sequence[torch.Tensor], group: Mapping[str, Any], divisor: float = 1.0
) -> None:
    """One step of each state by its gradient, which is divided by `divisor` in place, with the settings of an
    optimizer's parameter group."""
    device = states[0].master.device
    scale = None if divisor == 1 else torch.tensor(divisor).to(device, non_blocking=True)
    adamw(
        [s.master for s in states],
        [grad.to(s.master.device) for grad, s in zip(grads, states, strict=True)],
        [s.exp_avg for s in states],
        [s.exp_avg_sq for s in states],
        [],
        [s.step for s in states],
        fused=True,
        grad_scale=scale,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
