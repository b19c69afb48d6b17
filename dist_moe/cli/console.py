"""Shows what the package logs: information on stdout, warnings and errors on stderr.

Python's own `StreamHandler` would swallow the error when nobody reads stdout any more; here it ends the command.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Console(logging.Handler):
    """Looks up the streams for each line, because they may have been replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            print(record.getMessage(), flush=True)
        else:
            what = "error: " if record.levelno >= logging.ERROR else ""
            print(f"dist-moe: {what}{record.getMessage()}", file=sys.stderr, flush=True)


@contextmanager
def console() -> Iterator[None]:
    """Context manager: show what the package logs, from level INFO on."""
    package, handler = logging.getLogger("dist_moe"), _Console()
    level, propagate = package.level, package.propagate
    package.propagate = False  # a library that has set up the root's logging would print each line again
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.setLevel(level)
        package.propagate = propagate
        package.removeHandler(handler)
