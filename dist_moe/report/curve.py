"""What shares of the trained change do, as a table for each kind of rows, and which share was chosen."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from dist_moe.evaluation.curve import CHOSEN_ON, Curve, alpha_name
from dist_moe.evaluation.measures import REFUSED_SAFE
from dist_moe.evaluation.rows import Kind, before_noun
from dist_moe.report.columns import columns
from dist_moe.report.evaluation import HEADINGS, IN_GROUPS, one_kind, shown_estimate, size_of
from dist_moe.stats.proportions import wilson


def curve_lines(curve: Curve, max_over_refusal: float | None) -> Iterator[str]:
    """The curve of each kind of rows, a line an alpha; with a bound, the largest alpha that keeps it."""
    first = next(iter(curve.evaluations.values()))
    judge = first.facts.judges[0]
    yield (
        f"Experts with a share alpha of their change: base + alpha * (trained - base). Alpha 0 is "
        f"{first.facts.against_name}; each line is the export at its alpha (`dist-moe export RUN --alpha 0.5`)."
    )
    yield f"Judge {judge.name}: {judge.in_words}."
    for kind in curve.kinds:
        (group,) = first.of(kind, "all")
        yield f"\n{HEADINGS[kind]}. {size_of(group)}."
        yield columns(*_of_kind(curve, kind))
    yield ""
    if max_over_refusal is not None:
        yield _choice(curve, max_over_refusal)
    yield (
        "In [ ]: 95 % intervals, each of its line alone; all lines are of the same prompts. docs/evaluation.md says "
        "what each number means."
    )


def _of_kind(curve: Curve, kind: Kind) -> tuple[list[str], list[list[str]]]:
    points = curve.points(kind)
    names = [name for name in IN_GROUPS if any(name in point for point in points.values())]
    lines = [
        [alpha_name(alpha), *(shown_estimate(point.get(name)) for name in names)] for alpha, point in points.items()
    ]
    return ["alpha", *names], lines


def curve_frame(curve: Curve, kind: Kind | None) -> pd.DataFrame:
    """A line an alpha, columns (measure, value | low | high).

    Raises:
        UserError: `kind` is None and there are several, or there are no such rows.
    """
    chosen = one_kind(curve.kinds, kind)
    lines = {
        alpha: {
            (name, part): getattr(estimate, part)
            for name, estimate in point.items()
            for part in ("value", "low", "high")
        }
        for alpha, point in curve.points(chosen).items()
    }
    return pd.DataFrame.from_dict(lines, orient="index", dtype=float)


def _choice(curve: Curve, max_over_refusal: float) -> str:
    """Which alpha keeps the bound, or why none does; and that these rows have now chosen something."""
    points, chosen = curve.points(CHOSEN_ON), curve.largest(max_over_refusal)
    rows = f"safe {before_noun(CHOSEN_ON)} prompts"
    bound = f"at most {max_over_refusal:g} of the {rows} refused, by the upper end of the interval"
    lowest = points[min(curve.evaluations)].get(REFUSED_SAFE)
    assert lowest is not None
    if chosen is None:
        best = wilson(0, lowest.num_prompts)[1]
        why = f"with {lowest.num_prompts} prompts that end is {best:.3f} even if none is refused"
        return f"No alpha has {bound}: {why if best > max_over_refusal else 'try smaller ones'}"
    return (
        f"Largest alpha with {bound}: {alpha_name(chosen)}. It was chosen on these rows, so they are not held out from "
        "it: report its numbers on other rows"
    )
