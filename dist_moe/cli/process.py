"""What every command of ours is as a process: its streams, its signals, its status and its one line of an error."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dist_moe.cli.console import console
from dist_moe.cli.streams import Output, OutputLostError, own_streams
from dist_moe.errors import LostRankError, UserError

INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE
"""As of a program that SIGPIPE ends. The signal itself stays ignored, as Python has it: it would also end, without a
word, a command that has lost its connection to a store behind a URL."""
SAME_WISH_S = 2.0
"""A terminal's Ctrl-C reaches a process twice, from the terminal and from its launcher: the second comes within this,
and must not end the clearing up that the first has begun."""
LONGEST = 700


def run_process(command: Callable[[Output], int], name: str = "dist-moe") -> int:
    """Run a command and return its status; what a user should know of its end is one line on stderr.

    2: bad input, or a stdout that cannot be written (a full disk). 1: another rank has died. 130: interrupted by
    SIGINT or SIGTERM. 141, without a word: nobody reads the output of a command that prints. Anything else that is
    raised is a bug, and keeps its traceback.
    """
    output = Output()
    with own_streams(output):
        try:
            with _interruptible(), console():
                try:
                    return command(output)
                finally:
                    sys.stdout.flush()
        except UserError as error:
            return _end(name, f"error: {error}", 2)
        except LostRankError as error:
            return _end(name, f"error: {error}", 1)
        except OutputLostError as error:
            if isinstance(error.reason, BrokenPipeError):
                return UNREAD
            return _end(name, f"error: cannot write to standard output: {error.reason.strerror}", 2)
        except KeyboardInterrupt:
            return _end(name, "interrupted", INTERRUPTED) if is_first() else INTERRUPTED
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def is_first() -> bool:
    """Whether this process tells the user what is the same on all ranks of its job, before they know each other."""
    return os.environ.get("RANK", "0") == "0"


def print_end(name: str, line: str) -> None:
    """What a user should know of a command's end, on stderr: one line of at most `LONGEST` characters, whatever names
    of files and other foreign text it has."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{name}: {line}")
    half = LONGEST // 2
    print(line if len(line) <= LONGEST else f"{line[:half]} ... {line[5 - half :]}", file=sys.stderr, flush=True)


def _end(name: str, line: str, status: int) -> int:
    print_end(name, line)
    return status


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM is as Ctrl-C, so that what is half written is removed.

    A process under a launcher leaves SIGTERM as it is: its launcher ends it so when another rank has died, and it may
    then be waiting in a library that lets no Python code run.
    """
    signals = (signal.SIGINT,) if "RANK" in os.environ else (signal.SIGINT, signal.SIGTERM)
    first = 0.0

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if not first or now - first > SAME_WISH_S:
            first = now
            raise KeyboardInterrupt

    heeded = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]  # ignored by `&` in a script
    before = {number: signal.signal(number, interrupt) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
