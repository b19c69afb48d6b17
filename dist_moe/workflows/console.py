"""What a run tells its user: rank 0 speaks for all."""

from __future__ import annotations

from collections.abc import Callable

from dist_moe.parallel.comm import Comm

Say = Callable[[str], None]


def console(comm: Comm) -> Say:
    """Print a line at once, on rank 0; elsewhere do nothing."""

    def say(line: str) -> None:
        if comm.rank == 0:
            print(line, flush=True)

    return say
