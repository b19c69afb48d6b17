"""What ranks agree on when a step is done: a wish to stop, from a person, a scheduler or a launcher, or one's error."""

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
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together


class StopRequest:
    """While entered, SIGTERM to any rank, or one of two files, asks all ranks to stop after their step.

    `stop` is a person's file. `requeue` is a batch script's, which starts the job again when it finds the file still
    there at the end. The death of the process `launcher`, this one's parent, is a wish to stop too: nobody would see
    the job any more, or end it. None: there is no launcher but a shell, which a run may outlive. What has the name of
    one of the files and is none, such as a directory, is no wish.
    """

    def __init__(self, stop: Path, requeue: Path, comm: Comm, launcher: int | None) -> None:
        self.stop, self.requeue, self.comm, self.launcher = stop, requeue, comm, launcher
        self._signalled = False
        self._previous: Any = None
        self._failure: str | None = None

    def begin(self) -> None:
        """Forget a batch script's wish that was for an earlier job, which was killed before it could grant it.

        Called by all ranks together, as is `done`.

        Raises:
            UserError: on all ranks, if the file cannot be removed; likewise `done`.
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
        """A `UserError` inside is kept, for `agreed` to raise on all ranks: inside, ranks need not be together."""
        try:
            yield
        except UserError as error:
            self._failure = str(error)

    def agreed(self, written: bool = False) -> tuple[bool, bool]:
        """Whether any rank was asked to stop, and whether all have `written`: the same answers on all ranks.

        Called by all ranks together, after each step: one small sum is all that it costs.

        Raises:
            UserError: on all ranks, if one has failed.
        """
        votes = torch.tensor([self._asked(), written, self._failure is not None], dtype=torch.int64)
        stop, num_written, failed = self.comm.sum_(votes.to(self.comm.device)).tolist()
        if failed:
            raise UserError(next(message for message in self.comm.gather(self._failure) if message is not None))
        return stop > 0, num_written == self.comm.size

    def _asked(self) -> bool:
        orphaned = self.launcher is not None and os.getppid() != self.launcher
        by_file = self.comm.rank == 0 and (self.stop.is_file() or self.requeue.is_file())
        return self._signalled or orphaned or by_file

    def done(self, stopped: bool) -> None:
        """The run ends, before its last step if `stopped`. A wish that was granted, or came too late, is forgotten.

        Only `requeue` is left where it stopped the run, unless a person wished to stop it too.
        """
        by_person = self.comm.gather(self.stop.is_file())[0]
        if by_person or not stopped:
            self._forget(self.requeue)
        self._forget(self.stop)
