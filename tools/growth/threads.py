"""Many ranks as threads of one process: every exchange is real, and counted. Shows what grows with the number of
ranks, far beyond the processes that a machine could run."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from dist_moe.parallel.comm import gathered
from dist_moe.parallel.mesh import Mesh

T = TypeVar("T")
PATIENCE_S = 120.0


class Meeting:
    """Where the ranks of a group exchange values."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size)
        self._left: list[Any] = [None] * size
        self._made: Any = None

    def exchange(self, rank: int, value: T) -> list[T]:
        """The values of all ranks."""
        return self.make(rank, value, lambda values: values)

    def make(self, rank: int, value: T, function: Callable[[list[T]], Any]) -> Any:
        """What a function makes of the values of all ranks; it is asked once."""
        self._left[rank] = value
        if self._barrier.wait(PATIENCE_S) == 0:
            self._made = function([*self._left])
        self._barrier.wait(PATIENCE_S)
        made = self._made
        self._barrier.wait(PATIENCE_S)
        return made

    def abort(self) -> None:
        self._barrier.abort()


class ThreadComm:
    """A `Comm` of one of these threads."""

    device = torch.device("cpu")

    def __init__(self, meeting: Meeting, rank: int, calls: Counter[str], sent: Counter[str]) -> None:
        """`calls` and `sent` count this rank's collectives and the bytes that it sends to others, by method."""
        self._meeting, self.rank, self.size = meeting, rank, meeting.size
        self._calls, self._sent = calls, sent

    def _note(self, what: str, num_bytes: int) -> None:
        if self.size > 1:
            self._calls[what] += 1
            self._sent[what] += num_bytes

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        self._note("sum", tensor.nbytes)
        return tensor.copy_(self._meeting.make(self.rank, tensor.clone(), lambda found: torch.stack(found).sum(0)))

    def swap_counts(self, counts: torch.Tensor) -> torch.Tensor:
        self._note("counts", counts.nbytes)
        return torch.stack([each[self.rank] for each in self._meeting.exchange(self.rank, counts)])

    def swap_rows(self, rows: torch.Tensor, send: list[int], recv: list[int]) -> torch.Tensor:
        self._note("rows", (len(rows) - send[self.rank]) * rows[:1].nbytes)
        found = self._meeting.exchange(self.rank, (rows.detach(), send))
        parts = [each.split(sizes)[self.rank] for each, sizes in found]
        assert [len(part) for part in parts] == list(recv)
        return torch.cat(parts)

    def reduce_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        parts = self.swap_rows(rows, counts, [counts[self.rank]] * self.size)
        return parts.view(self.size, counts[self.rank], *rows.shape[1:]).sum(0)

    def gather_rows(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        return rows if self.size == 1 else gathered(self, rows, counts)

    def gather(self, value: T) -> list[T]:
        self._note("objects", 0)
        return self._meeting.exchange(self.rank, value)

    def barrier(self) -> None:
        self._meeting.exchange(self.rank, None)


def on_threads(num_ranks: int, ep_size: int, work: Callable[[Mesh, Counter[str], Counter[str]], T]) -> Sequence[T]:
    """What `work` returns on each rank of a mesh. It also gets the counts of its rank's collectives and bytes."""
    assert num_ranks % ep_size == 0
    num_replicas = num_ranks // ep_size
    world = Meeting(num_ranks)
    groups = [Meeting(ep_size) for _ in range(num_replicas)]
    columns = [Meeting(num_replicas) for _ in range(ep_size)]

    def run(rank: int) -> T:
        replica, place = divmod(rank, ep_size)
        calls, sent = Counter[str](), Counter[str]()
        mesh = Mesh(
            ThreadComm(world, rank, calls, sent),
            ThreadComm(groups[replica], place, calls, sent),
            ThreadComm(columns[place], replica, calls, sent),
        )
        has_ended = False
        try:
            result = work(mesh, calls, sent)
            has_ended = True
        finally:
            if not has_ended:  # the others would wait
                for meeting in (world, *groups, *columns):
                    meeting.abort()
        return result

    with ThreadPoolExecutor(num_ranks) as pool:
        running = [pool.submit(run, rank) for rank in range(num_ranks)]
    failed = [error for each in running if (error := each.exception()) is not None]
    for error in sorted(failed, key=lambda error: isinstance(error, threading.BrokenBarrierError)):
        raise error
    return [each.result() for each in running]
