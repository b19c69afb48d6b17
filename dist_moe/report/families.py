"""Which model types work, as `dist-moe families` prints it, and docs/families.md has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from dist_moe.conformance.checks import CHECKS
from dist_moe.conformance.sweep import Support


def table(rows: Iterable[Support]) -> Iterator[str]:
    """The results as a Markdown table, line by line."""
    yield "| model type | " + " | ".join(CHECKS) + " | note |"
    yield "| --- |" + " :-: |" * len(CHECKS) + " --- |"
    for row in rows:
        marks = " | ".join("yes" if row.works[name] else "no" for name in CHECKS)
        yield f"| {row.model_type} | {marks} | {row.note} |"
