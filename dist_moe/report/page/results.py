"""What was measured before and after, by kind of rows: all together, by category, by batch, by file."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from dist_moe.evaluation.groups import By
from dist_moe.evaluation.harness import Capabilities
from dist_moe.evaluation.measures import REFUSED_SAFE, REFUSED_UNSAFE
from dist_moe.evaluation.record import Evaluation
from dist_moe.evaluation.rows import Kind, before_noun
from dist_moe.report.evaluation import HEADINGS, IN_GROUPS, shown_silenced, size_of
from dist_moe.report.harness import shown_level
from dist_moe.report.page.blocks import Cell, Section, details, heading, joined, note, paragraph, table
from dist_moe.report.page.charts import Ends, change_chart
from dist_moe.report.page.contents import RunContents
from dist_moe.report.page.meanings import meanings
from dist_moe.report.page.numbers import shown, shown_change, shown_p
from dist_moe.stats.measured import Estimate, Group

MOST_LINES = 1000
MOST_DRAWN = 24
FEW = 8


def results(run: RunContents, key: str) -> Section | None:
    """None: the run was not evaluated."""
    evaluation = run.evaluation
    if evaluation is None:
        return None
    facts = evaluation.facts
    judge = facts.judges[0]
    parts = [
        paragraph(
            f"Scored without a mask. Before: {facts.against_name or 'nothing'}. An answer counts as refused if the "
            f"judge {judge.name} says so ({judge.in_words}). In parentheses 95 % intervals for other prompts of the "
            f"same kind: of rates Wilson's and Newcombe's, of the rest by {facts.settings['evaluation.resamples']} "
            "resamples of prompts. p: exact McNemar test over prompts, not corrected for the number of groups."
        )
    ]
    parts.append(meanings(name for group in evaluation.groups for name in group.measures))
    if facts.silenced is not None:
        parts.append(note(f"After is the same model without {shown_silenced(facts.silenced)}."))
    if facts.alpha != 1:
        parts.append(note(f"After has the share {facts.alpha:g} of the trained experts' change."))
    for kind in evaluation.kinds:
        parts += _kind(evaluation, kind, f"{key}-{before_noun(kind)}")
    if evaluation.capabilities is not None:
        parts += [heading(4, "Capabilities"), _capabilities(evaluation.capabilities)]
    return Section("results", "Before and after", joined(parts))


def _kind(evaluation: Evaluation, kind: Kind, key: str) -> list[Markup]:
    (whole,) = evaluation.of(kind, "all")
    title, _, told = HEADINGS[kind].partition(": ")
    told = f"{told[0].upper()}{told[1:]}. " if told else f"{title}. "
    parts = [heading(4, f"Rows: {kind}"), paragraph(f"{told}{size_of(whole).capitalize()}."), _whole(whole)]
    if has_before := evaluation.facts.against_name is not None:
        parts.append(_pictures(evaluation.of(kind, "category"), kind, "category", key))
    for by in ("category", "batch", "file"):
        groups = evaluation.of(kind, by)
        if len(groups) > 1 or (groups and by == "batch"):
            made = _table(groups, by, has_before=has_before)
            few = len(groups) <= FEW and by == "category"
            title = f"{before_noun(kind).capitalize()} rows by {by} ({len(groups)})"
            parts.append(made if few else details(title, made))
    return parts


def _whole(group: Group) -> Markup:
    """A line a measure."""
    lines: list[list[Cell]] = []
    for name, measure in group.measures.items():
        last = measure.after or measure.before
        assert last is not None
        p_value = shown_p(measure.change.p_value if measure.change else None).replace("-", "–")
        cells = (shown(name, measure.before), shown(name, measure.after), shown_change(name, measure.change))
        lines.append([name, *cells, p_value, str(last.num_rows), str(last.num_prompts)])
    head = ["measure", "before", "after", "change", "p", "rows", "prompts"]
    return table(f"All {before_noun(group.kind)} rows", head, lines)


def _table(groups: Sequence[Group], by: By, *, has_before: bool) -> Markup:
    names = [name for name in IN_GROUPS if any(name in group.measures for group in groups)]
    lines: list[list[Cell]] = []
    for group in groups[:MOST_LINES]:
        cells: list[Cell] = [_name(group, by), str(group.num_unsafe), str(group.num_safe)]
        for name in names:
            measure = group.measures.get(name)
            before = f"{shown(name, measure.before).split(' (')[0]}\u00a0→\u00a0" if measure and measure.before else ""
            cells.append(before + shown(name, measure.after if measure else None))
        lines.append(cells)
    what = "before → after (interval of after)" if has_before else "value (interval)"
    caption = f"By {by}: {what}"
    if len(groups) > MOST_LINES:
        caption += f"; the first {MOST_LINES} of {len(groups)}"
    return table(caption, [by, "unsafe rows", "safe rows", *names], lines)


def _capabilities(found: Capabilities) -> Markup:
    limit = "" if found.limit is None else f"; only the first {found.limit} rows of each task: a trial, no result"
    lines = [
        [f"{line.task}, {line.metric}", str(line.num_rows or "–"), shown_level(line.before), shown_level(line.after)]
        for line in found.lines
    ]
    caption = f"By lm-evaluation-harness {found.version}, ± its own standard error{limit}"
    return table(caption, ["task, metric", "rows", "before", "after"], lines)


def _name(group: Group, by: By) -> str:
    """A file without the directories of the machine that it was on."""
    return group.name.rpartition("/")[2] if by == "file" else group.name


def _pictures(groups: Sequence[Group], kind: Kind, by: str, key: str) -> Markup:
    """A picture for each label that there are groups of."""
    made = []
    for label, name in (("unsafe", REFUSED_UNSAFE), ("safe", REFUSED_SAFE)):
        with_it = [group for group in groups if name in group.measures]
        rows = [
            (group.name, ends(group.measures[name].before), ends(group.measures[name].after))
            for group in with_it[:MOST_DRAWN]
        ]
        if not rows:
            continue
        told = [f"{each}: {_told(before)} to {_told(after)}" for each, before, after in rows]
        some = f" (the first {MOST_DRAWN} of {len(with_it)})" if len(with_it) > MOST_DRAWN else ""
        title = f"Refused {label} prompts by {by}{some}, {before_noun(kind)} rows"
        made.append(change_chart(f"{key}-{label}", title, "; ".join(told), rows, f"refused, {label} prompts"))
    return Markup('<div class="charts">{}</div>').format(joined(made)) if made else Markup()


def ends(estimate: Estimate | None) -> Ends | None:
    """As a picture shows it."""
    return None if estimate is None else Ends(estimate.value, estimate.low, estimate.high)


def _told(found: Ends | None) -> str:
    return "–" if found is None else f"{100 * found.value:.0f} %"
