"""Replaces stdout and stderr by streams that accept any text, and that survive when nobody reads them any more.

A stream whose file takes no more data (a pipe without a reader, a full disk) is reported once; later writes to it are
ignored, including Python's own flush at exit. A command whose product is its output then ends; a command that writes
files goes on without its console.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


class OutputLostError(Exception):
    """Nobody can read a command's output any more. `reason` is the system's error."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Forgiving(io.FileIO):
    """A file whose first failing write calls `on_loss`; later failing writes are ignored."""

    def __init__(self, descriptor: int, on_loss: Callable[[OSError], None]) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._on_loss, self._lost = on_loss, False

    def write(self, data: bytes) -> int:  # type: ignore[override]  # the type stubs know no buffers
        if not self._lost:
            try:
                return super().write(data)
            except OSError as error:
                self._lost = True
                self._on_loss(error)
        return memoryview(data).nbytes


class Output:
    """Decides what happens when stdout is lost: the command ends, unless it has called `outlive_reader`."""

    def __init__(self) -> None:
        self._outlives = False

    def outlive_reader(self) -> None:
        """From now on the command goes on without a reader: a lost stdout is reported once on stderr."""
        self._outlives = True

    def lost(self, error: OSError) -> None:
        if not self._outlives:
            raise OutputLostError(error)
        print(f"dist-moe: the output is read no more ({error.strerror}); going on without it", file=sys.stderr)


@contextmanager
def own_streams(output: Output) -> Iterator[None]:
    """Context manager: replace Python's own stdout and stderr; streams that somebody else has put there are kept.

    A stream that was closed at the start (`>&-`) counts as lost. Its file descriptor is taken, so that no file opened
    later gets what libraries print.
    """
    for descriptor in range(3):
        _take_if_closed(descriptor)
    before = sys.stdout, sys.stderr
    if sys.stderr is sys.__stderr__:
        sys.stderr = _stream(2, sys.stderr, lambda error: None, at_once=True)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _stream(1, sys.stdout, output.lost, at_once=sys.stdout is not None and sys.stdout.isatty())
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _take_if_closed(descriptor: int) -> None:
    try:
        os.fstat(descriptor)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)  # the lowest free number, which is this one; a write to it fails


def _stream(descriptor: int, own: TextIO | None, on_loss: Callable[[OSError], None], *, at_once: bool) -> TextIO:
    raw = io.BufferedWriter(_Forgiving(descriptor, on_loss))  # type: ignore[type-var]  # they want a write(Buffer)
    encoding = own.encoding if own is not None else "utf-8"
    return io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", line_buffering=at_once)
