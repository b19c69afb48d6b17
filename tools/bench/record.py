"""A run's numbers in a file, and a later run beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.bench.spread import Spread
from tools.bench.timing import Comparison, Count, Result

FREE = ("rows", "out", "previous", "markdown")
"""Options that change no number."""


class RecordError(ValueError):
    """A file that no run like this one has written."""


def write(path: Path, options: Mapping[str, Any], results: Sequence[Result]) -> None:
    """JSON: the options, the spread of each ratio, and each counted number."""
    ratios = {r.name: asdict(r.spread) for r in results if isinstance(r, Comparison)}
    counts = {r.name: r.value for r in results if isinstance(r, Count)}
    record = {"options": options, "ratios": ratios, "counts": counts}
    path.write_text(json.dumps(record, indent=1, default=str) + "\n", encoding="utf-8")


def read(path: Path, options: Mapping[str, Any]) -> tuple[dict[str, Spread], dict[str, float]]:
    """Ratios and counted numbers of a run with the same options.

    Raises:
        RecordError: with one line that says so.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        ratios = {str(name): Spread(**values) for name, values in record["ratios"].items()}
        counts = {str(name): float(value) for name, value in record["counts"].items()}
        theirs = dict(record["options"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is no file that --out has written ({error}); give --previous one that is") from error
    ours = json.loads(json.dumps(dict(options), default=str))
    for name in [name for name in ours if name not in FREE and ours[name] != theirs.get(name)]:
        raise RecordError(
            f"{path} is of a run with {name} {theirs.get(name)}, this one has {ours[name]}; give both the same"
        )
    return ratios, counts


def beside(previous: tuple[dict[str, Spread], dict[str, float]], results: Sequence[Result]) -> list[tuple[str, ...]]:
    """For each row: its name, then, now, and whether this median lies in the earlier run's spread."""
    ratios, counts = previous
    rows: list[tuple[str, ...]] = []
    for r in results:
        if isinstance(r, Comparison):
            before, now = ratios.get(r.name), r.spread.median
            then = f"{before.median:.3f} ({before.low:.3f} to {before.high:.3f})" if before else "-"
            rows.append((r.name, then, f"{now:.3f}", before.says_of(now) if before else "not there"))
        elif isinstance(r, Count):
            number = counts.get(r.name)
            then = "-" if number is None else f"{number:.4g}"
            rows.append((r.name, then, f"{r.value:.4g}", _change(number, r.value)))
    return rows


def _change(before: float | None, now: float) -> str:
    if before is None:
        return "not there"
    return "the same" if before == now else f"{(now - before) / before:+.1%}" if before else "another"
