"""A wish to stop, from a person, a scheduler or a launcher: the step in progress is finished, and the run is saved."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any, Self

import torch

from dist_moe.parallel.comm import Comm


class StopRequest:
    """While entered, SIGTERM to any rank, or a file `path`, asks all ranks to stop after their step."""

    def __init__(self, path: Path, comm: Comm) -> None:
        self.path, self.comm = path, comm
        self._signalled = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGTERM, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    def agreed(self) -> bool:
        """Whether any rank was asked: the same answer on all. Called by all ranks together."""
        asked = self._signalled or (self.comm.rank == 0 and self.path.exists())
        return bool(self.comm.sum_(torch.tensor(int(asked), device=self.comm.device)))

    def done(self) -> None:
        """The wish was granted: remove the file, so that the run can be started again."""
        if self.comm.rank == 0:
            self.path.unlink(missing_ok=True)
