"""Runs a command as a process: output streams, signals, exit status, and errors in one line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dist_moe.cli.console import console
from dist_moe.cli.streams import Output, OutputLostError, own_streams
from dist_moe.errors import LostRankError, UserError
from dist_moe.interruption import Interruption

INTERRUPTED = 128 + signal.SIGINT
UNREAD = 128 + signal.SIGPIPE
"""Exit status when nobody reads the output: that of a program which SIGPIPE ends. The signal itself stays ignored,
as in Python by default, because it would also silently end a command that has lost its connection to a remote
store."""
LONGEST = 700


def run_process(command: Callable[[Output, Interruption], int], name: str = "dist-moe") -> int:
    """Run a command and return its exit status; an error that the user should know is one line on stderr.

    2: wrong input, or stdout cannot be written (full disk). 1: another rank has died. 130: interrupted by SIGINT or
    SIGTERM. 141, silently: nobody reads the output of a command that prints. Other exceptions are bugs and keep their
    traceback.
    """
    output, interruption = Output(), Interruption()
    with own_streams(output):
        try:
            with _interruptible(interruption), console():
                try:
                    return command(output, interruption)
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
    """Whether this process prints messages that are the same on all ranks, before the ranks know each other."""
    return os.environ.get("RANK", "0") == "0"


def print_end(name: str, line: str) -> None:
    """Print the final message of a command on stderr, as one line of at most `LONGEST` characters, whatever text is
    in it."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{name}: {line}")
    half = LONGEST // 2
    print(line if len(line) <= LONGEST else f"{line[:half]} ... {line[5 - half :]}", file=sys.stderr, flush=True)


def _end(name: str, line: str, status: int) -> int:
    print_end(name, line)
    return status


@contextmanager
def _interruptible(interruption: Interruption) -> Iterator[None]:
    """Context manager: SIGTERM acts like Ctrl-C, so that half-written files are removed.

    Not under a launcher, which sends SIGTERM when another rank has died: the process may then be waiting inside a
    library in which no Python code runs.
    """
    signals = (signal.SIGINT,) if "RANK" in os.environ else (signal.SIGINT, signal.SIGTERM)
    heeded = [number for number in signals if signal.getsignal(number) != signal.SIG_IGN]  # ignored by `&` in a script
    before = {number: signal.signal(number, interruption) for number in heeded}
    try:
        yield
    except Exception as error:
        if interruption.asked:  # an error that a library has raised in its place, or that follows from it
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
