"""Measured times as a Markdown table with exponents, and as a picture."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

Times = Mapping[str, Mapping[int, float]]
"""Case -> size -> CPU seconds."""
AGAIN_BELOW_S = 0.5
"""What takes less is done three times, and the least time counts."""
SHORT_S = 0.02
"""Times below this are mostly what every call costs, and in no exponent."""


def cpu_seconds(work: Callable[[], object]) -> float:
    best = math.inf
    for _ in range(3):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
        if best > AGAIN_BELOW_S:
            break
    return best


def exponent(times: Mapping[int, float]) -> float | None:
    """Slope of the line through log time over log size, from the largest sizes; None: there are less than two."""
    points = [(math.log(size), math.log(seconds)) for size, seconds in times.items() if seconds >= SHORT_S][-3:]
    if len(points) < 2:
        return None
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def in_words(slope: float | None) -> str:
    """What an exponent means; None: nobody knows."""
    if slope is None:
        return ""
    named = (
        (0.3, "hardly"),
        (0.8, "less than in proportion"),
        (1.25, "in proportion"),
        (1.75, "more than in proportion"),
    )
    word = next((word for most, word in named if slope < most), "with the square" if slope < 2.4 else "with the cube")
    return f"{word} ({slope:.1f})"


def table(times: Times, sizes: Sequence[int], what: str, unit: str = "{:.2f}") -> str:
    """A line for each case."""
    head = [what, *(f"{size:,}" for size in sizes), "grows"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, found in times.items():
        cells = [unit.format(found[size]) if size in found else "" for size in sizes]
        lines.append("| " + " | ".join([name, *cells, in_words(exponent(found))]) + " |")
    return "\n".join(lines)


def draw(times: Times, what: str, path: Path, unit: str = "CPU seconds") -> None:
    """All cases in one picture, both axes logarithmic; a 0 has no place on them, and none in the picture."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "dist_moe", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(7.5, 4.6), layout="constrained")
        axes = figure.subplots()
        marks = "os^vD<>P*X"
        for number, (name, found) in enumerate(times.items()):
            shown = {size: value for size, value in found.items() if value > 0}
            axes.plot(
                [*shown],
                [*shown.values()],
                marker=marks[number % len(marks)],
                color=f"C{number % 10}",
                linestyle=("-", "--", ":")[number // 10],
                markersize=3,
                linewidth=1,
                label=name,
            )
        axes.set(xscale="log", yscale="log", xlabel=what, ylabel=unit)
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize=6.5, frameon=False)
        figure.savefig(path, metadata={"Date": None})
