"""Memory: what tensors take, what a process takes at its highest point, and what that should be at most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed.tensor import DTensor

from tools.bench.timing import Count

MEMORY_GOAL, BALANCE_GOAL = 1.05, 1.05


class Weighed(Protocol):
    """A step whose parts are known."""

    def weights(self) -> list[torch.Tensor]:
        """All weights of the model that this process has."""

    def vectors(self) -> list[torch.Tensor]:
        """The optimizer's master weights and moments; the former may be weights of the model."""

    def num_bytes(self) -> tuple[int, int]:
        """Gradients and optimizer state."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Of one process."""

    weights: int
    """Bytes."""
    gradients: int
    state: int
    """Bytes of master weights and moments that are no weights of the model."""
    num_owned: int
    """Parameters with optimizer state."""

    @classmethod
    def of(cls, step: Weighed) -> Parts:
        vectors = step.vectors()
        return cls(storage_bytes(step.weights()), *step.num_bytes(), sum(each.numel() for each in vectors) // 3)


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Of all memory that these lie in; what several lie in counts once."""
    storages = [local(each).untyped_storage() for each in tensors]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


def bytes_outside(tensors: Iterable[torch.Tensor], weights: Iterable[torch.Tensor]) -> int:
    """Of the tensors that do not lie in the memory of these weights."""
    inside = {local(weight).untyped_storage().data_ptr() for weight in weights}
    return sum(each.nbytes for each in tensors if each.untyped_storage().data_ptr() not in inside)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def peak_bytes(make: Callable[[], Callable[[int], Any]], num_steps: int, device: torch.device) -> int:
    """At the highest point of the steps: on CUDA what torch had allocated, on a CPU the process's resident memory over
    that of the libraries alone. The process should be a fresh one."""
    libraries = status("VmRSS")
    step = make()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:  # building a model has a peak of its own: forget it
        Path("/proc/self/clear_refs").write_text("5")
    for i in range(num_steps):
        step(i)
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else status("VmHWM") - libraries


def status(key: str) -> int:
    """Bytes, from Linux. Not getrusage: a child inherits its parent's ru_maxrss."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def peak_goal(row: str, peak: int, ours: Parts, floor_peak: int, floor: Parts) -> Count:
    """The peak over its limit: the weights here, 16 bytes for each parameter with optimizer state (12 of state and 4 of
    gradient), and the activations of the floor, which are what its peak has beside its own parts."""
    activations = floor_peak - floor.weights - floor.gradients - floor.state
    parts = {"weights": ours.weights, "16 B a trained parameter": 16 * ours.num_owned, "activations": activations}
    limit = sum(parts.values())
    rest = peak - ours.weights - ours.gradients - ours.state
    mib = ", ".join(f"{name} {num / 2**20:.0f}" for name, num in parts.items())
    return Count(
        f"{row}: peak memory / (weights + 16 B a trained parameter + the floor's activations)",
        peak / limit,
        MEMORY_GOAL,
        f"MiB: {mib}; what ours has beside weights, gradients and state is {rest / 2**20:.0f}",
        f"{peak / limit:.3f} = {peak / 2**20:.0f} / {limit / 2**20:.0f} MiB",
    )


def optimizer_goal(row: str, ranks: Sequence[Parts], num_union: int, is_fp32: bool) -> Count:
    """Bytes of optimizer state for each parameter of the union's experts, over all ranks: 12, or 8 where the weights
    are their own master weights."""
    state, owned = sum(rank.state for rank in ranks), sum(rank.num_owned for rank in ranks)
    return Count(
        f"{row}: bytes of optimizer state a parameter of the union",
        state / num_union,
        8 if is_fp32 else 12,
        f"{state:,} bytes of {owned:,} parameters with state, of which the union has {num_union:,}",
    )


def owned_goal(row: str, ranks: Sequence[Parts]) -> Count:
    """Parameters with optimizer state, of the rank with most over the mean."""
    owned = [rank.num_owned for rank in ranks]
    return Count(
        f"{row}: parameters with optimizer state, max / mean",
        max(owned) * len(owned) / sum(owned),
        BALANCE_GOAL,
        f"the ranks have {', '.join(f'{num:,}' for num in owned)}",
    )
