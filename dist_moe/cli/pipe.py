"""What a command does when nobody reads its output any more, as after `| head`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable


def end_with_reader(command: Callable[[], int]) -> int:
    """Run a command that prints, and return its status; when its output is read no more, it ends without a word.

    The status is then 141, as of a program that SIGPIPE ends. The signal itself stays ignored, as Python has it: it
    would also end, without a word, a command that has lost its connection to a store behind a URL.
    """
    try:
        try:
            return command()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again when it ends
        return 128 + signal.SIGPIPE
