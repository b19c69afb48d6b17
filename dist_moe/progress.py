"""How far long work has come: a bar on a terminal, now and then a plain line in a log."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY_S = 30.0
"""Seconds between two lines in a log."""

log = logging.getLogger(__name__)


@contextmanager
def progress(what: str, total: int, unit: str, *, quiet: bool = False) -> Iterator[Callable[[int], object]]:
    """Context manager: yields a function that is told how many more of `total` are done.

    It shows nothing if it is `quiet`, or if what the package logs as information is not shown.
    """
    if quiet or not log.isEnabledFor(logging.INFO):
        yield lambda more: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
        with Progress(*columns, TimeRemainingColumn(), console=Console(file=sys.stderr)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda more: bar.advance(task, more)
    else:
        yield _Lines(what, total, unit).advance


class _Lines:
    """Lines such as "Routing: 12 of 30 parts, 95 s, about 140 s left"; none for what is done soon."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done, self._begun = 0, time.monotonic()
        self._said = self._begun

    def advance(self, more: int) -> None:
        self._done += more
        now = time.monotonic()
        if now - self._said < EVERY_S or not self._done:
            return
        self._said, took = now, now - self._begun
        left = took / self._done * (self._total - self._done)
        log.info(f"{self._what}: {self._done} of {self._total} {self._unit}, {took:.0f} s, about {left:.0f} s left")
