"""Work of the first rank alone, for which the others wait as long as it takes.

A process group gives up when a rank waits in one exchange for longer than its time limit. So the waiting ranks and the
first one exchange a number every second until the work is done; each of these exchanges is short.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together

BEAT_S = 1.0
"""Seconds between two exchanges; far below any time limit of a process group."""


def alone(comm: Comm, work: Callable[[], object]) -> None:
    """On all ranks: run `work` on rank 0, and return when it is done. It must not use `comm`.

    Raises:
        UserError: `work` has raised it; on all ranks.
    """
    with together(comm):
        if comm.size == 1:
            work()
        elif comm.rank > 0:
            while not _exchange(comm, is_done=False):
                pass
        else:
            done = threading.Event()
            with ThreadPoolExecutor(1) as pool:
                beats = pool.submit(_beat, comm, done)
                try:
                    work()
                finally:
                    done.set()
                beats.result()


def _beat(comm: Comm, done: threading.Event) -> None:
    while not _exchange(comm, is_done=done.wait(BEAT_S)):
        pass


def _exchange(comm: Comm, *, is_done: bool) -> bool:
    """Whether the first rank's work is done, as it says."""
    return bool(comm.sum_(torch.tensor(int(is_done), device=comm.device)))
