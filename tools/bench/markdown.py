"""What was found, as the tables of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from tools.bench.reasons import reason
from tools.bench.timing import Comparison, Count, Fact, Result

RATIOS = ["row", "ours ms", "other ms", "ratio: min", "median (interval)", "max", "in CPU time", "goal", "verdict"]


def markdown(results: Sequence[Result]) -> str:
    """Ratios in one process and on ranks, counted goals, other numbers, and why goals are SHORT."""
    comparisons = [r for r in results if isinstance(r, Comparison)]
    parts = [
        _rows(RATIOS, [_ratios(c) for c in comparisons if c.is_on_ranks == on_ranks]) for on_ranks in (False, True)
    ]
    counts = [(r.name, r.text, f"{r.goal:g}", r.word) for r in results if isinstance(r, Count)]
    parts.append(_rows(("counted", "number", "goal", "verdict"), counts))
    parts.append(_rows(("measured once", ""), [(r.name, r.value) for r in results if isinstance(r, Fact)]))
    short = [r for r in results if not isinstance(r, Fact) and r.is_short]
    parts.append("\n".join(f"- *{r.name}*: {reason(r, results)}" for r in short))
    return "\n\n".join(part for part in parts if part)


def _ratios(c: Comparison) -> tuple[str, ...]:
    spread = c.spread
    return (
        c.name,
        f"{1e3 * median(c.ours.wall):.1f}",
        f"{1e3 * median(c.other.wall):.1f}",
        f"{spread.smallest:.3f}",
        f"{spread.median:.3f} ({spread.low:.3f} to {spread.high:.3f})",
        f"{spread.largest:.3f}",
        f"{c.cpu_spread.median:.3f}",
        "" if c.goal is None else f"{c.goal:.2f}",
        c.word,
    )


def _rows(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Nothing where there is no row."""
    lines = [header, ["---"] * len(header), *rows] if rows else []
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
