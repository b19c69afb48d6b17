"""Every rank of a job gives signs of life, and ends when those of another stay away.

A rank that is stopped, or whose host has lost its network or power, closes no connection. The others wait for it in
their next exchange, where no Python code runs, until the process group's time limit, and do not know for whom. So a
thread of each rank tells the job's store every second where the rank is. Rank 0 hears all others, and they hear
rank 0: of N ranks the store gets N questions each time, not N * N.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch.distributed as dist

log = logging.getLogger(__name__)

LIMIT_S = 300.0
"""The default of `parallel.timeout`."""
EVERY_S = 1.0
"""Time between two signs of a rank; far below any limit, so that a rank may change the limit before another does."""
JOIN_S = 10.0
"""How long the end waits for a thread that the store does not answer."""
LAST_WORDS_S = 5.0
"""How long the end waits for what is written last."""
NUM_NAMED = 4
"""A message names so many lost ranks."""
ADVICE = (
    "see that their hosts and the network are well, then run the same command again to resume from the last checkpoint"
)


class Heartbeat:
    """The signs of life of one rank, and what it hears of others. Without `beating` (a single process) it does nothing.

    Time is that in which this process could run: where all ranks are stopped and go on together, none is missed.
    """

    def __init__(self) -> None:
        self.limit_s = LIMIT_S
        """All ranks end within so many seconds after the last sign of one of them; the same on all ranks."""
        self.done = ""
        """What this rank has done, for the others' messages."""
        self.last_words: Callable[[str], None] | None = None
        """Is called with the reason before this process ends, in a thread beside the work."""
        self.lost: str | None = None
        """Which ranks are lost, as all that are left will say."""
        self._over = threading.Event()
        self._awake_s = 0.0
        self._signs: dict[int, str] = {}
        self._heard_s: dict[int, float] = {}

    @contextmanager
    def beating(self, store: dist.Store, rank: int, num_ranks: int) -> Iterator[None]:
        """Context manager around the work of a rank, in the thread that does it. `store`: that of all ranks."""
        others = range(1, num_ranks) if rank == 0 else [0] if num_ranks > 1 else []
        self._heard_s = dict.fromkeys(others, 0.0)
        # a connection of its own: on each, one answer is waited for after another
        apart = dist.PrefixStore("heartbeat", store.clone())  # type: ignore[attr-defined]
        worker = threading.get_ident()
        threads = [
            threading.Thread(target=self._beat, args=(apart, rank, worker), name="heartbeat", daemon=True),
            threading.Thread(target=self._listen, args=(apart, rank), name="heartbeats of others", daemon=True),
        ]
        for thread in threads if others else ():
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads if others else ():
                thread.join(JOIN_S)  # a thread that the end of Python meets inside torch ends the process by SIGABRT

    def _beat(self, store: dist.Store, rank: int, worker: int) -> None:
        """Tell and ask the store, which may never answer."""
        number = 0
        try:
            while not self._over.wait(EVERY_S):
                number += 1
                sign = {"number": number, "host": socket.gethostname(), "process": os.getpid()}
                store.set(str(rank), json.dumps(sign | {"done": self.done, "place": _place(worker)}))
                for other in self._heard_s:
                    if other in self._signs or store.check([str(other)]):
                        self._hear(other, store.get(str(other)).decode())
                if self.lost is None and store.check(["lost"]):
                    self.lost = store.get("lost").decode()
        except dist.DistError:
            return  # the store has ended, and with it rank 0 or its host, which is heard no more

    def _hear(self, rank: int, sign: str) -> None:
        if sign != self._signs.get(rank):
            self._signs[rank], self._heard_s[rank] = sign, self._awake_s

    def _listen(self, store: dist.Store, rank: int) -> None:
        """End this process when another is lost."""
        before = time.monotonic()
        while not self._over.wait(EVERY_S):
            now = time.monotonic()
            self._awake_s += min(now - before, 2 * EVERY_S)
            before = now
            # what is left of the limit: the last sign may not have been heard at once, and all ranks have to be told
            silent = self._silent(self.limit_s - 5 * EVERY_S)
            if self.lost is None and silent:
                self.lost = self._said_of(silent)
                if rank == 0:
                    with suppress(dist.DistError):  # the launcher that holds the store has ended
                        store.set("lost", self.lost)
            # all ranks must know it before the first of them ends, and closes its connections
            if self.lost is not None and not self._over.wait(2 * EVERY_S):
                self._end(f"rank {rank}: {self.lost}; {ADVICE}")

    def _silent(self, limit_s: float) -> dict[int, float]:
        """The ranks that have not been heard for so long, and for how long."""
        silence = {rank: self._awake_s - heard_s for rank, heard_s in self._heard_s.items()}
        return {rank: seconds for rank, seconds in silence.items() if seconds > limit_s}

    def _said_of(self, silent: dict[int, float]) -> str:
        named = [_said(rank, seconds, self._signs.get(rank)) for rank, seconds in silent.items()]
        more = [f"{len(named) - NUM_NAMED} more ranks too"] if len(named) > NUM_NAMED else []
        return "; ".join([*named[:NUM_NAMED], *more])

    def _end(self, line: str) -> None:
        """The work cannot be interrupted: it waits inside a library. So the process ends beside it."""
        # where the log's file system or the reader of stderr has gone with the network, without a word
        silently = threading.Timer(LAST_WORDS_S, os._exit, (1,))
        silently.daemon = True
        silently.start()
        log.error(line)
        if self.last_words is not None:
            self.last_words(line)
        os._exit(1)


def _said(rank: int, seconds: float, sign: str | None) -> str:
    said = f"no sign of life for {seconds:.0f} s"
    if sign is None:
        return f"rank {rank} is lost, {said}"
    last = json.loads(sign)
    done = f"with {last['done']}, " if last["done"] else ""
    who = f"rank {rank} is lost (process {last['process']} on {last['host']})"
    return f"{who}, {said}; last seen {done}in {last['place']}"


def _place(thread: int) -> str:
    """Where in this package a thread is, above the exchange itself: `function (file:line)`."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("dist_moe.") and module != "dist_moe.parallel.comm":
            return f"{frame.f_code.co_name} ({module.replace('.', '/')}.py:{frame.f_lineno})"
        frame = frame.f_back
    return "code of others"
