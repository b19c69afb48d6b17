"""Communication between processes: a `Comm` that is passed to the code that needs it, never a global.

`SoloComm` is one process, `GroupComm` a torch.distributed group. Both have the same methods, so callers need not ask
how many ranks there are.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
import torch.distributed as dist

from dist_moe.parallel.heartbeat import Heartbeat

T = TypeVar("T")


class Comm(Protocol):
    """A group of `size` processes; this one has number `rank`. Tensors are on `device`."""

    rank: int
    size: int
    device: torch.device
    heartbeat: Heartbeat

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """all_reduce: sum over ranks, in place."""

    def swap_counts(self, counts: torch.Tensor) -> torch.Tensor:
        """all_to_all of integers: [size, n], row r for rank r -> [size, n], row r from rank r."""

    def swap_rows(self, rows: torch.Tensor, send: list[int], recv: list[int]) -> torch.Tensor:
        """all_to_all of rows: [sum(send), H] -> [sum(recv), H], in rank order."""

    def reduce_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """reduce_scatter: rows [sum(counts), N], of which counts[r] are for rank r -> this rank's rows, summed over
        ranks."""

    def gather_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """all_gather: this rank's rows [counts[rank], N] -> the rows of all ranks [sum(counts), N], in rank order."""

    def gather(self, value: T) -> list[T]:
        """The small Python values of all ranks, in rank order, on every rank."""

    def barrier(self) -> None:
        """Wait for all ranks."""


class SoloComm:
    """A single process."""

    rank, size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device, self.heartbeat = device, Heartbeat()

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def swap_counts(self, counts: torch.Tensor) -> torch.Tensor:
        return counts

    def swap_rows(self, rows: torch.Tensor, send: list[int], recv: list[int]) -> torch.Tensor:
        return rows

    def reduce_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return rows

    def gather_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return rows

    def gather(self, value: T) -> list[T]:
        return [value]

    def barrier(self) -> None:
        return


class GroupComm:
    """A torch.distributed process group (gloo on CPU, nccl on GPUs). One of a single process exchanges nothing."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, heartbeat: Heartbeat | None = None) -> None:
        self.group, self.device, self.heartbeat = group, device, heartbeat or Heartbeat()
        self.rank, self.size = group.rank(), group.size()

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def swap_counts(self, counts: torch.Tensor) -> torch.Tensor:
        if self.size == 1:
            return counts
        received = torch.empty_like(counts)
        dist.all_to_all_single(received, counts.contiguous(), group=self.group)
        return received

    def swap_rows(self, rows: torch.Tensor, send: list[int], recv: list[int]) -> torch.Tensor:
        if self.size == 1:
            return rows
        received = rows.new_empty((sum(recv), *rows.shape[1:]))
        dist.all_to_all_single(received, rows.contiguous(), recv, send, group=self.group)
        return received

    def reduce_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        # an exchange and a local sum: the same order of summation on every backend, and no padding to the largest rank
        parts = self.swap_rows(rows, counts, [counts[self.rank]] * self.size)
        return parts.view(self.size, counts[self.rank], *rows.shape[1:]).sum(0)

    def gather_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return rows if self.size == 1 else gathered(self, rows, counts)

    def gather(self, value: T) -> list[T]:
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def barrier(self) -> None:
        dist.barrier(group=self.group)


def gathered(comm: Comm, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """`Comm.gather_rows`, by two exchanges.

    First every rank gets an equal part of all values, then all get all parts. So no rank sends more than its own rows
    and all rows once; one that sent its rows to each of many ranks itself would send them as often.
    """
    everyone = range(comm.size)
    ends = [rows.shape[1:].numel() * sum(counts[:rank]) for rank in range(comm.size + 1)]
    cuts = [ends[-1] * rank // comm.size for rank in range(comm.size + 1)]

    def common(owner: int, part: int) -> int:
        return max(0, min(ends[owner + 1], cuts[part + 1]) - max(ends[owner], cuts[part]))

    send, recv = [common(comm.rank, part) for part in everyone], [common(owner, comm.rank) for owner in everyone]
    part = comm.swap_rows(rows.flatten(), send, recv)
    sizes = [cuts[rank + 1] - cuts[rank] for rank in everyone]
    every = comm.swap_rows(part.repeat(comm.size), [len(part)] * comm.size, sizes)
    return every.view(-1, *rows.shape[1:])
