"""stdout and stderr of a command: text that no encoding refuses, and a reader that may go away.

A stream whose file takes no more (a pipe without a reader, a full disk) is lost, once; what is written to it later
goes nowhere, Python's own flush at the end included. What that means is the command's matter: one whose product is
what it prints ends there, one that writes files goes on without its console.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


class OutputLostError(Exception):
    """Nobody can read any more what a command prints. `reason` is the system's error."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Forgiving(io.FileIO):
    """A file whose first failing write is told to `on_loss`, and the later ones to nobody."""

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
    """What becomes of a command whose stdout is lost: it ends, until it says that it `outlives` its reader."""

    def __init__(self) -> None:
        self._outlives = False

    def outlive_reader(self) -> None:
        """From here on the command's product is not what it prints: a lost stdout is said on stderr, once."""
        self._outlives = True

    def lost(self, error: OSError) -> None:
        if not self._outlives:
            raise OutputLostError(error)
        print(f"dist-moe: the output is read no more ({error.strerror}); going on without it", file=sys.stderr)


@contextmanager
def own_streams(output: Output) -> Iterator[None]:
    """Python's own stdout and stderr as forgiving ones; what somebody has put in their place stays.

    A stream that was closed before the start (`>&-`) is lost from the first; its number is taken, so that no file that
    is opened later gets what libraries print.
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
