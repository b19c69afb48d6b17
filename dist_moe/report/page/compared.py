"""Variants and runs side by side: refusals of unsafe prompts against those of safe ones, and all measures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from dist_moe.evaluation.comparison import BASE, MEASURES
from dist_moe.evaluation.measures import REFUSED_SAFE, REFUSED_UNSAFE
from dist_moe.evaluation.record import EvaluationFacts
from dist_moe.evaluation.rows import before_noun
from dist_moe.report.columns import spread
from dist_moe.report.comparison import ONE_SEED, averaged_over
from dist_moe.report.page.blocks import Cell, Section, joined, note, paragraph, table
from dist_moe.report.page.charts import Ends, plane_chart
from dist_moe.report.page.contents import ComparisonContents, RunContents
from dist_moe.report.page.meanings import meanings
from dist_moe.report.page.numbers import TO, shown, shown_change
from dist_moe.report.page.results import ends
from dist_moe.stats.crossed import Mean
from dist_moe.stats.measured import Estimate, Group

AXES = ("refused, safe prompts (over-refusal)", "refused, unsafe prompts")
PLANE = "Refusals of unsafe prompts against refusals of safe ones"


def comparison(found: ComparisonContents, key: str) -> Section:
    """The plane, levels, and differences to the reference, of which none is named that chance explains."""
    values = found.comparison
    seeds = ("seed " if len(values.seeds) == 1 else "seeds ") + ", ".join(map(str, values.seeds))
    parts = [
        paragraph(
            f"Each variant was trained from {seeds} and scored on the same {before_noun(values.kind)} prompts, "
            f"without a mask; judge: {values.judge}. In parentheses 95 % intervals, for other "
            f"{'prompts' if len(values.seeds) == 1 else 'seeds and other prompts'}."
        )
    ]
    if len(values.seeds) == 1:
        parts.append(note(f"{ONE_SEED}."))
    parts.append(meanings(MEASURES))
    points = [
        (name, _of_mean(levels.get(REFUSED_SAFE)), _of_mean(levels.get(REFUSED_UNSAFE)))
        for name, levels in values.levels.items()
    ]
    parts += picture(points, key)
    parts.append(_levels(found))
    parts.append(_differences(found))
    return Section("comparison", "Variants side by side", joined(parts))


def _levels(found: ComparisonContents) -> Markup:
    values = found.comparison
    names = [name for name in MEASURES if any(name in levels for levels in values.levels.values())]
    lines: list[list[Cell]] = []
    for number, (variant, levels) in enumerate(values.levels.items(), 1):
        trained = [spread(each.get(variant, [0])) for each in (values.num_experts, values.num_parameters)]
        lr = f"{values.lrs[variant]:g}" if variant in values.lrs else "–"
        lines.append([f"{number} {variant}", *trained, lr, *(shown(name, levels.get(name)) for name in names)])
    head = ["variant", "experts trained", "trainable parameters", "learning rate", *names]
    return table(f"Mean over {averaged_over(values)}", head, lines)


def _differences(found: ComparisonContents) -> Markup:
    values = found.comparison
    names = [name for name in MEASURES if any(name in each for each in values.differences.values())]
    lines: list[list[Cell]] = []
    for variant, differences in values.differences.items():
        lines.append([variant, *(_difference(name, differences.get(name)) for name in names)])
    caption = f"Differences to {values.reference}, on the same {averaged_over(values)}; * more than chance explains"
    return table(caption, ["variant", *names], lines)


def _difference(name: str, found: Mean | None) -> str:
    return shown_change(name, found) + ("\u00a0*" if found is not None and found.is_clear else "")


def _of_mean(found: Mean | None) -> Ends | None:
    return None if found is None else Ends(found.value, found.low, found.high)


def _whole(points: Sequence[tuple[str, Ends | None, Ends | None]]) -> list[tuple[str, Ends, Ends]]:
    """Those that have both rates: all or none, as all were scored on the same rows."""
    return [(name, safe, unsafe) for name, safe, unsafe in points if safe is not None and unsafe is not None]


def picture(points: Sequence[tuple[str, Ends | None, Ends | None]], key: str) -> Iterator[Markup]:
    """The plane; each point has the number of its place among all."""
    if not (whole := _whole(points)):
        return
    told = [
        f"{n} {name}: unsafe {_percent(up)}, safe {_percent(right)}" for n, (name, right, up) in enumerate(whole, 1)
    ]
    yield plane_chart(f"{key}-plane", PLANE, "; ".join(told), whole, AXES)
    yield paragraph(
        "Up is better, right is worse: a model that refuses everything is at the top right. Lines are 95 % intervals."
    )


def _plane(points: Sequence[tuple[str, Ends | None, Ends | None]], key: str) -> Iterator[Markup]:
    """The picture, and its points as a table."""
    yield from picture(points, key)
    lines = [[f"{n} {name}", _interval(right), _interval(up)] for n, (name, right, up) in enumerate(_whole(points), 1)]
    if lines:
        yield table("The points of the picture", ["", *AXES], lines)


def _percent(found: Ends) -> str:
    return f"{100 * found.value:.0f} %"


def _interval(found: Ends) -> str:
    if found.low is None or found.high is None:
        return _percent(found)
    return f"{_percent(found)} ({100 * found.low:.0f}{TO}{100 * found.high:.0f})"


@dataclass(frozen=True, slots=True)
class _Scored:
    """Evaluations that can stand in one picture: the same rows, judge, kind of rows and base model."""

    name: str
    group: Group
    facts: EvaluationFacts


def runs_compared(runs: Sequence[RunContents], key: str) -> Section | None:
    """Runs that were evaluated on the same rows, by the same judge, from the same base. None: there are no two."""
    together: dict[str, list[_Scored]] = {}
    for run in runs:
        if run.evaluation is not None:
            facts = run.evaluation.facts
            for kind in run.evaluation.kinds:
                (group,) = run.evaluation.of(kind, "all")
                same = f"{kind} {facts.data_hash} {facts.judges[0].facts} {facts.against_hash} {_settings(facts)}"
                together.setdefault(same, []).append(_Scored(run.name, group, facts))
    parts: list[Markup] = []
    for number, scored in enumerate(each for each in together.values() if len(each) > 1):
        adjective, names = before_noun(scored[0].group.kind), ", ".join(each.name for each in scored)
        parts.append(paragraph(f"{adjective.capitalize()} rows: {names}."))
        parts += _plane([*_points(scored)], f"{key}-{number}")
    if not parts:
        return None
    parts.append(paragraph("The intervals are of prompts, not of seeds: dist-moe compare trains from several."))
    return Section("runs", "Runs side by side", joined(parts))


def _settings(facts: EvaluationFacts) -> dict[str, object]:
    """Those that answers and verdicts follow from, which are not the training's."""
    return {key: value for key, value in sorted(facts.settings.items()) if key.startswith(("evaluation.", "data."))}


def _points(scored: Sequence[_Scored]) -> Iterator[tuple[str, Ends | None, Ends | None]]:
    first = scored[0]
    if first.facts.against_name is not None:
        yield BASE, _rate(first.group, REFUSED_SAFE, "before"), _rate(first.group, REFUSED_UNSAFE, "before")
    for each in scored:
        yield each.name, _rate(each.group, REFUSED_SAFE, "after"), _rate(each.group, REFUSED_UNSAFE, "after")


def _rate(group: Group, name: str, when: str) -> Ends | None:
    found: Estimate | None = getattr(group.measures.get(name), when, None)
    return ends(found)
