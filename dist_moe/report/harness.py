"""The table of lm-evaluation-harness, as an evaluation shows it."""

from __future__ import annotations

from collections.abc import Iterator

from dist_moe.evaluation.harness import Capabilities, Level
from dist_moe.report.columns import columns


def capability_lines(found: Capabilities) -> Iterator[str]:
    """A heading, and a line for each metric of each task."""
    limit = "" if found.limit is None else f"; only the first {found.limit} rows of each task: a trial, no result"
    yield f"\nCapabilities, by lm-evaluation-harness {found.version}: {', '.join(found.tasks)}{limit}."
    lines = [
        [line.task, line.metric, str(line.num_rows or "-"), shown_level(line.before), shown_level(line.after)]
        for line in found.lines
    ]
    yield columns(["task", "metric", "rows", "before", "after"], lines)
    yield "Behind ±: the harness' own standard error of each number by itself; rows before and after are the same."


def shown_level(level: Level | None) -> str:
    """`0.412 ± 0.010`."""
    if level is None:
        return "-"
    return f"{level.value:.3f}" + ("" if level.standard_error is None else f" ± {level.standard_error:.3f}")
