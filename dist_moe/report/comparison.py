"""Variants of a run side by side, as lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pandas as pd

from dist_moe.evaluation.comparison import MEASURES, Comparison
from dist_moe.evaluation.learning_rates import NUMBERS, LearningRates
from dist_moe.evaluation.rows import before_noun
from dist_moe.report.columns import spread
from dist_moe.stats.crossed import Mean

ONE_SEED = (
    "One seed says nothing of others: the intervals are for other prompts, and another seed may lie outside of them"
)


def averaged_over(found: Comparison) -> str:
    """What means are taken over, and what their intervals are for others of."""
    return "prompts" if len(found.seeds) == 1 else "seeds and prompts"


def comparison_lines(found: Comparison) -> Iterator[str]:
    """A table of levels, and one of differences to the reference in which no winner is named that is not clear."""
    numbers = sorted({cell.num_prompts for cells in found.levels.values() for cell in cells.values()})
    prompts = f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"{numbers[0]}"
    seeds = ("seed " if len(found.seeds) == 1 else "seeds ") + ", ".join(map(str, found.seeds))
    variants = "1 variant" if len(found.levels) == 2 else f"{len(found.levels) - 1} variants"
    over = averaged_over(found)
    yield (
        f"{variants}, {seeds}; {prompts} {before_noun(found.kind)} prompts a measure, each scored without a mask; "
        f"judge: {found.judge}. Mean over {over} [95 % interval for other {over}]; losses and KL in nats per token"
    )
    if len(found.seeds) == 1:
        yield ONE_SEED
    yield from _table(found.levels, found, lambda cell: _interval(cell, signed=False))
    yield ""
    yield f"Differences to {found.reference}, on the same {over} (* more than chance explains):"
    yield from _table(
        found.differences, found, lambda cell: _interval(cell, signed=True) + (" *" if cell.is_clear else "  ")
    )


def _table(cells: Mapping[str, Mapping[str, Mean]], found: Comparison, shown: Callable[[Mean], str]) -> Iterator[str]:
    lines = {}
    for variant, by_measure in cells.items():
        line = {
            "experts": spread(found.num_experts.get(variant, [0])),
            "trainable parameters": spread(found.num_parameters.get(variant, [0])),
            "lr": f"{found.lrs[variant]:g}" if variant in found.lrs else "-",
        }
        line |= {name: shown(by_measure[name]) if name in by_measure else "-" for name in MEASURES}
        lines[variant] = line
    yield from pd.DataFrame.from_dict(lines, orient="index").to_string().splitlines()


def learning_rate_lines(found: LearningRates) -> Iterator[str]:
    """The rule, and a line for each rate of each variant; the chosen one has a mark."""
    yield f"{chosen_by(found)}. * chosen"
    lines = []
    for variant, choice in found.choices.items():
        for tried in choice.tried:
            mark = " *" if tried.lr == choice.lr else "  "
            numbers = {name: f"{tried.measures[name]:.3f}" if name in tried.measures else "-" for name in NUMBERS}
            lines.append({"variant": variant, "lr": f"{tried.lr:g}{mark}", "loss": f"{tried.loss:.4f}", **numbers})
    if lines:
        yield from pd.DataFrame(lines).to_string(index=False).splitlines()
    yield from worth_a_look(found)


def chosen_by(found: LearningRates) -> str:
    """The rule, and the rows that it looked at."""
    return (
        f"Learning rates by the {found.rule}, on {found.num_validation} training rows that these runs were not trained "
        f"on (of {found.num_fitted + found.num_validation}, divided by prompt, seed {found.seed}); no held-out row was "
        "looked at"
    )


def worth_a_look(found: LearningRates) -> Iterator[str]:
    """Choices at the end of what was tried."""
    for variant, choice in found.choices.items():
        if choice.is_at_end:
            yield f"{variant}: {choice.lr:g} is at the end of the rates tried: a better one may lie beyond it"


def _interval(cell: Mean, *, signed: bool) -> str:
    plus = "+" if signed else ""
    return f"{cell.value:{plus}.3f} [{cell.low:{plus}.3f}, {cell.high:{plus}.3f}]"
