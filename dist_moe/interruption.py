"""Ctrl-C and SIGTERM as an exception, and the memory of it, because the exception may be lost on its way."""

from __future__ import annotations

import time
from types import FrameType

SAME_WISH_S = 2.0
"""Ctrl-C in a terminal reaches a process twice, from the terminal and from its launcher. A second signal within this
time is the same request, and must not interrupt the clean-up after the first."""


class Interruption:
    """A signal handler that raises KeyboardInterrupt wherever Python happens to be.

    That may be inside a library that swallows it (`__del__`, callbacks) or raises its own error in its place
    (extensions that ask only whether there was an error). So who goes on, or sees an error, asks `asked`.
    """

    def __init__(self) -> None:
        self._first = 0.0

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._first > 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.asked or now - self._first > SAME_WISH_S:
            self._first = now
            raise KeyboardInterrupt
