"""Counts what a process sends to others through torch.distributed, whoever asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

NAMESPACES = ("c10d", "_c10d_functional")
SILENT = ("wait_tensor", "_wrap_tensor_autograd", "barrier", "monitored_barrier_")
"""What sends no tensor."""


class Traffic(TorchDispatchMode):
    """Inside the context, collectives and the bytes that this rank sends in them.

    An all_reduce counts as a reduce_scatter and an all_gather, as rings do it; each of these sends a rank's part to
    every other one.
    """

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size
        self.num_collectives = 0
        self.num_bytes = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if func.namespace in NAMESPACES and name not in SILENT:
            self.num_collectives += 1
            self.num_bytes += self._sent(name, args)
        return func(*args, **(kwargs or {}))

    def _sent(self, name: str, args: Sequence[Any]) -> float:
        others = self.size - 1
        if name in ("alltoall_base_", "all_to_all_single"):
            rows, splits = (args[1], args[4]) if name == "alltoall_base_" else (args[0], args[2])
            kept = splits[self.rank] if splits else len(rows) // self.size
            return (len(rows) - kept) * rows[:1].nbytes
        if name in ("_allgather_base_", "all_gather_into_tensor"):
            return others * args[1 if name == "_allgather_base_" else 0].nbytes
        if name in ("_reduce_scatter_base_", "reduce_scatter_tensor"):
            return others / self.size * args[1 if name == "_reduce_scatter_base_" else 0].nbytes
        if name.startswith(("allreduce", "all_reduce")):
            return 2 * others / self.size * _nbytes(args[0])
        if name in ("allgather_", "broadcast_", "reduce_"):
            return others * _nbytes(args[1] if name == "allgather_" else args[0])
        raise AssertionError(f"{name}: what does it send?")


def _nbytes(tensors: torch.Tensor | Sequence[torch.Tensor]) -> int:
    return tensors.nbytes if isinstance(tensors, torch.Tensor) else sum(each.nbytes for each in tensors)
