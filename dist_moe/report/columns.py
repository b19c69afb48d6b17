"""What tables have in their cells, and tables of text for the console."""

from __future__ import annotations

from collections.abc import Sequence


def columns(head: Sequence[str], lines: Sequence[Sequence[str]], indent: str = "") -> str:
    """A line for the head and for each of the lines; a column is as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    return "\n".join(
        indent + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *lines)
    )


def spread(numbers: Sequence[int]) -> str:
    """Numbers of several seeds: `1,024 to 2,048`, or one if all are the same."""
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
