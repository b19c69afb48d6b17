"""A library's warning is shown once, by one rank, and counted when it is repeated; each rank's log has its own."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any, Self, TextIO

LIBRARIES = ("accelerate", "datasets", "DeepSpeed", "torch", "transformers")
"""Names of their loggers. Those that have set up none of their own are not repeated by us either."""


class LibraryWarnings:
    """Context manager around a job's work: what Python's `warnings` and the libraries' loggers warn of."""

    def __init__(self, tell: Callable[[str], None], *, is_first: bool) -> None:
        """`tell` gets each text once, and at the end how often it came again; `is_first`: it is shown as well."""
        self._tell, self._is_first = tell, is_first
        self._seen = Counter[str]()
        self._filters = list[tuple[logging.Handler, logging.Filter]]()
        self._show: Any = None

    def __enter__(self) -> Self:
        self._show, warnings.showwarning = warnings.showwarning, self._on_warning
        for name in LIBRARIES:
            for handler in logging.getLogger(name).handlers:
                once = _Once(self)
                handler.addFilter(once)
                self._filters.append((handler, once))
        return self

    def __exit__(self, *_: object) -> None:
        warnings.showwarning = self._show
        for handler, once in self._filters:
            handler.removeFilter(once)
        for text, number in self._seen.items():
            if number > 1:
                self._tell(f"{number - 1} times more: {text}")

    def is_to_be_shown(self, text: str) -> bool:
        """Count a text; whether this is the first time, on the rank that shows."""
        self._seen[text] += 1
        if self._seen[text] == 1:
            self._tell(text)
        return self._is_first and self._seen[text] == 1

    def _on_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if self.is_to_be_shown(f"{category.__name__}: {message}"):
            self._show(message, category, filename, lineno, file, line)


class _Once(logging.Filter):
    """Lets a library's warning through when it is to be shown; information passes.

    A record that reaches several handlers is one warning: the first of them decides.
    """

    def __init__(self, warned: LibraryWarnings) -> None:
        super().__init__()
        self._warned = warned

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        decided = record.__dict__
        if "dist_moe_shows" not in decided:
            decided["dist_moe_shows"] = self._warned.is_to_be_shown(f"{record.name}: {record.getMessage()}")
        return bool(decided["dist_moe_shows"])
