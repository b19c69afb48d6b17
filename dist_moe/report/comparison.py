"""Variants of a run side by side, as lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pandas as pd

from dist_moe.evaluation.comparison import MEASURES, Comparison
from dist_moe.stats.crossed import Mean


def comparison_lines(found: Comparison) -> Iterator[str]:
    """A table of levels, and one of differences to the reference in which no winner is named that is not clear."""
    numbers = sorted({cell.num_prompts for cells in found.levels.values() for cell in cells.values()})
    prompts = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
    seeds = ", ".join(map(str, found.seeds))
    yield (
        f"{len(found.levels) - 1} variant(s), seed(s) {seeds}; {prompts} {found.kind} prompts a measure, each scored "
        f"without a mask; judge: {found.judge}. Mean over seeds and prompts [95 % interval for other seeds and prompts]"
    )
    if len(found.seeds) == 1:
        yield "One seed says nothing of others: the intervals are of prompts alone"
    yield from _table(found.levels, found, lambda cell: _interval(cell, signed=False))
    yield ""
    yield f"Less {found.reference}, on the same seeds and prompts (* more than chance explains):"
    yield from _table(
        found.differences, found, lambda cell: _interval(cell, signed=True) + (" *" if cell.is_clear else "  ")
    )


def _table(cells: Mapping[str, Mapping[str, Mean]], found: Comparison, shown: Callable[[Mean], str]) -> Iterator[str]:
    lines = {}
    for variant, by_measure in cells.items():
        experts = sorted(set(found.num_experts.get(variant, [0])))
        line = {"experts": f"{experts[0]}" if len(experts) == 1 else f"{experts[0]}-{experts[-1]}"}
        line |= {name: shown(by_measure[name]) if name in by_measure else "-" for name in MEASURES}
        lines[variant] = line
    yield from pd.DataFrame.from_dict(lines, orient="index").to_string().splitlines()


def _interval(cell: Mean, *, signed: bool) -> str:
    plus = "+" if signed else ""
    return f"{cell.value:{plus}.3f} [{cell.low:{plus}.3f}, {cell.high:{plus}.3f}]"
