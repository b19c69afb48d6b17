"""What was found, as text."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from tools.bench.reasons import reason
from tools.bench.spread import describe_interval
from tools.bench.timing import Comparison, Count, Fact, Result


def table(results: Sequence[Result]) -> str:
    """Ratios, counted goals, other numbers, and why goals are SHORT."""
    parts = [_comparisons([r for r in results if isinstance(r, Comparison)])]
    parts.append(columns([(r.name, r.text, r.verdict) for r in results if isinstance(r, Count)]))
    parts.append(columns([(r.name, r.value) for r in results if isinstance(r, Fact)]))
    parts.append(_goals(results))
    return "\n\n".join(part for part in parts if part)


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    width = max(len(comparison.name) for comparison in comparisons)
    lines = [f"{'':<{width}}  ours ms  other ms   ratio: min  median  (interval)         max  in CPU time  verdict"]
    for c in comparisons:
        spread = c.spread
        times = f"{1e3 * median(c.ours.wall):>7.1f}  {1e3 * median(c.other.wall):>8.1f}"
        interval = f"({spread.low:.3f} to {spread.high:.3f})"
        ratios = f"{spread.smallest:>10.3f}  {spread.median:>6.3f}  {interval:<16}  {spread.largest:>6.3f}"
        lines.append(f"{c.name:<{width}}  {times}  {ratios}  {c.cpu_spread.median:>11.3f}  {c.verdict}".rstrip())
    launches = sorted({(c.num_launches, len(c.ratios) // c.num_launches) for c in comparisons})
    return "\n".join([*lines, *(describe_interval(*each) for each in launches)])


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """All but the last column as wide as its widest text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{text:<{w}}" for text, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def _goals(results: Sequence[Result]) -> str:
    judged = [r for r in results if isinstance(r, Count) or (isinstance(r, Comparison) and r.goal is not None)]
    short = [r for r in judged if r.is_short]
    if not judged:
        return ""
    lines = [f"{r.name}: {reason(r, results)}" for r in short]
    return "\n".join([f"Of {len(judged)} goals {len(judged) - len(short)} PASS, {len(short)} are SHORT.", *lines])
