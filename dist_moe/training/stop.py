"""Lets all ranks agree after a step whether to stop: because a person, a scheduler or a launcher asks, or after an
error."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch

from dist_moe.errors import UserError
from dist_moe.files import writing
from dist_moe.interruption import Interruption
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together


class StopRequest:
    """Context manager: inside, SIGTERM to any rank, or one of two files, asks all ranks to stop after their step.

    `stop` is a file that a person creates. `requeue` is a file that a batch script creates; if the script still finds
    it at the end, it starts the job again. The death of the parent process `launcher` counts as a request to stop too,
    because nobody would see the job any more or end it; None: there is no launcher but a shell, which a run may
    outlive. So does an `interruption` that did not end the work before its first step. A directory or the like with the
    name of one of the files is not a request.
    """

    def __init__(
        self, stop: Path, requeue: Path, comm: Comm, launcher: int | None, interruption: Interruption | None = None
    ) -> None:
        self.stop, self.requeue, self.comm, self.launcher = stop, requeue, comm, launcher
        self.interruption = interruption
        self._signalled = False
        self._previous: Any = None
        self._failure: str | None = None

    def begin(self) -> None:
        """Remove a batch script's request that was meant for an earlier job, which was killed.

        Called by all ranks together, as is `done`.

        Raises:
            UserError: on all ranks: the file cannot be removed. `done` likewise.
        """
        self._forget(self.requeue)

    def _forget(self, wish: Path) -> None:
        with together(self.comm), writing(wish):
            if self.comm.rank == 0 and wish.is_file():
                wish.unlink()

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Context manager: keeps a `UserError` of this rank, which `agreed` then raises on all ranks."""
        try:
            yield
        except UserError as error:
            self._failure = str(error)

    def agreed(self, written: bool = False) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether all have `written`; the same answer on all ranks.

        Called by all ranks together, after each step; it takes one small all_reduce.

        Raises:
            UserError: on all ranks: one of them has failed.
        """
        votes = torch.tensor([self._asked(), written, self._failure is not None], dtype=torch.int64)
        stop, num_written, failed = self.comm.sum_(votes.to(self.comm.device)).tolist()
        if failed:
            raise UserError(next(message for message in self.comm.gather(self._failure) if message is not None))
        return stop > 0, num_written == self.comm.size

    def _asked(self) -> bool:
        orphaned = self.launcher is not None and os.getppid() != self.launcher
        by_file = self.comm.rank == 0 and (self.stop.is_file() or self.requeue.is_file())
        interrupted = self.interruption is not None and self.interruption.asked
        return self._signalled or interrupted or orphaned or by_file

    def done(self, stopped: bool) -> None:
        """The run ends; `stopped`: before its last step. Removes requests that were granted or came too late.

        `requeue` is kept if it stopped the run, unless a person asked to stop too.
        """
        by_person = self.comm.gather(self.stop.is_file())[0]
        if by_person or not stopped:
            self._forget(self.requeue)
        self._forget(self.stop)
