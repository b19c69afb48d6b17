"""What the package logs, as the commands show it: information on stdout, warnings on stderr.

Python's own `StreamHandler` would catch the end of a stdout that nobody reads; here it ends the command, as it should.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Console(logging.Handler):
    """Looks the streams up at each line, as they may have been replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            print(record.getMessage(), flush=True)
        else:
            print(f"dist-moe: {record.getMessage()}", file=sys.stderr, flush=True)


@contextmanager
def console() -> Iterator[None]:
    """Show what the package logs, from INFO on."""
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
