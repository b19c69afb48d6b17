"""An evaluation for a person to read, and as pandas tables. Each table is of one kind of rows, and says which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict

import pandas as pd

from dist_moe.errors import UserError
from dist_moe.evaluation.groups import BYS, By
from dist_moe.evaluation.measures import (
    ANSWER_LOSS,
    DIVERGENCE,
    REFUSAL_LOSS,
    REFUSED_SAFE,
    REFUSED_UNSAFE,
)
from dist_moe.evaluation.record import Evaluation, Silenced
from dist_moe.evaluation.rows import EvaluatedRow, Kind
from dist_moe.report.columns import columns
from dist_moe.report.harness import capability_lines
from dist_moe.stats.measured import Estimate, Group, Measure

TIMES = ("before", "after", "change")
MOST_LINES = 100
IN_GROUPS = (REFUSED_UNSAFE, REFUSED_SAFE, REFUSAL_LOSS, ANSWER_LOSS, DIVERGENCE)
"""Measures that tables by batch, category and file show."""
HEADINGS = {
    "held out": "Held out: these rows were not trained, and no trained prompt is like theirs",
    "overlapping": "Overlapping: these rows were not trained, but a trained prompt is equal or nearly equal to theirs",
    "trained": "Trained: these are the rows of the training itself, not held out; they say nothing of other prompts",
    "unknown": "Not looked for among the rows of the training, so these may be some of them",
}


def evaluation_lines(evaluation: Evaluation) -> Iterator[str]:
    """Line by line what was found, as the console shows it."""
    facts = evaluation.facts
    yield f"Before is {facts.against_name}." if facts.against_name else "There is no before: give --against BASE."
    if facts.silenced is not None:
        yield f"After is the same model without {shown_silenced(facts.silenced)}."
    for judge in facts.judges:
        yield f"Judge {judge.name}: {judge.in_words}."
    yield from _leakage(evaluation)
    for kind in evaluation.kinds:
        for by in BYS:
            groups = evaluation.of(kind, by)
            if by == "all":
                (group,) = groups
                yield f"\n{HEADINGS[kind]}. {size_of(group)}."
                yield columns(*_whole(group))
            elif len(groups) > 1 or (groups and by == "batch"):
                yield f"\n{HEADINGS[kind].partition(':')[0]}, by {by}, {_of_groups(evaluation)}:"
                yield columns(*_parts(groups[:MOST_LINES]))
                if len(groups) > MOST_LINES:
                    yield f"... and {len(groups) - MOST_LINES} more: see evaluation.json"
    if evaluation.capabilities is not None:
        yield from capability_lines(evaluation.capabilities)
    yield ""
    yield from _doubts(evaluation)
    draws = f"{facts.settings['evaluation.resamples']} resamples of prompts (seed {facts.seed})"
    yield (
        f"In [ ]: 95 % intervals; of rates Wilson's and Newcombe's, of the rest by {draws}. p: exact McNemar test over "
        "prompts. Losses and KL are in nats per token. docs/evaluation.md says what each number means."
    )


def without_width(evaluation: Evaluation) -> Iterator[str]:
    """A sentence of the intervals that look certain and are not: of measures whose resamples are all alike."""
    names = {
        name: None
        for kind in evaluation.kinds
        for group in evaluation.of(kind, "all")
        for name, measure in group.measures.items()
        if any(found and found.low is not None and found.low == found.high for found in (measure.before, measure.after))
    }
    if names:
        yield (
            f"{', '.join(names)}: an interval has no width, because all resamples of these prompts give one number; "
            "other prompts need not."
        )


def shown_silenced(silenced: Silenced) -> str:
    """Which experts get no token."""
    numbers = "all batches" if silenced.batches is None else f"batches {', '.join(map(str, silenced.batches))}"
    return f"the {silenced.num_experts} experts of {silenced.masks}, {numbers}: no token is routed to them"


def size_of(group: Group) -> str:
    """How many rows of each label, and how many different prompts."""
    return f"{group.num_unsafe} unsafe and {group.num_safe} safe rows, {group.num_prompts} different prompts"


def _leakage(evaluation: Evaluation) -> Iterator[str]:
    """What was found of the trained prompts among these."""
    facts = evaluation.facts
    if facts.unknown is not None:
        yield f"Whether these rows are among those of the training is not known: {facts.unknown}"
        return
    near = facts.settings["evaluation.near_equal"]
    others = [row for row in evaluation.rows if row.kind != "trained"]
    like = [row for row in others if row.like is not None]
    num_equal = sum(row.like.is_equal for row in like if row.like)
    yield (
        f"Rows that were trained: {len(evaluation.rows) - len(others)}. Others: {len(others)}; of these the prompt of "
        f"{num_equal} is equal to a trained one, and that of {len(like) - num_equal} nearly equal (from {near} on)."
    )
    for row in sorted(like, key=lambda row: (-(row.like.similarity if row.like else 0), row.id))[:3]:
        assert row.like is not None
        yield f"  {row.file}:{row.place} is like the trained row {row.like.trained} ({row.like.similarity:.2f})"
    if facts.num_not_compared:
        yield f"  {facts.num_not_compared} rows were compared with equal prompts only: nearly equal ones are too many"


def _doubts(evaluation: Evaluation) -> Iterator[str]:
    """What makes the numbers worth less."""
    rows = evaluation.rows
    for when in ("before", "after"):
        outcomes = [outcome for row in rows if (outcome := row.outcome(when)) is not None]
        cut = sum(not outcome.ended for outcome in outcomes)
        if cut:
            most = evaluation.facts.settings["evaluation.max_new_tokens"]
            yield f"{cut} of {len(outcomes)} answers {when} are cut: they had not ended after {most} tokens."
        for judge in evaluation.facts.judges:
            verdicts: list[str] = [outcome.judgements[judge.name].verdict for outcome in outcomes]
            for verdict, what in (
                ("missing", "could not be judged, and are in no rate"),
                ("partial", "refuse in part"),
            ):
                if verdicts.count(verdict):
                    yield f"By {judge.name}, {verdicts.count(verdict)} of {len(outcomes)} answers {when} {what}."
    yield from without_width(evaluation)
    for each in evaluation.disagreements:
        found = each.agreement
        yield (
            f"Judges {each.first} and {each.second} agree on {found.raw:.3f} of {found.num_judged} answers {each.when} "
            f"(kappa {found.kappa:.2f}); {found.num_left_out} left out."
        )


def _whole(group: Group) -> tuple[list[str], list[list[str]]]:
    """A line a measure: before, after, change, p, rows."""
    lines = []
    for name, measure in group.measures.items():
        last = measure.after or measure.before
        assert last is not None
        p_value = measure.change.p_value if measure.change else None
        cells = [
            shown_estimate(measure.before),
            shown_estimate(measure.after),
            shown_estimate(measure.change, sign="+"),
        ]
        lines.append([name, *cells, shown_p(p_value), str(last.num_rows)])
    return ["", *TIMES, "p", "rows"], _without_empty(lines)


def _parts(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """A line a group: the measures of `IN_GROUPS` that there are."""
    names = [name for name in IN_GROUPS if any(name in group.measures for group in groups)]
    lines = []
    for group in groups:
        cells = [shown_measure(group.measures.get(name)) for name in names]
        lines.append([group.name, f"{group.num_unsafe}+{group.num_safe}", *cells])
    return ["", "unsafe+safe rows", *names], lines


def _of_groups(evaluation: Evaluation) -> str:
    return "before → after [interval]" if evaluation.facts.against_name else "value [interval]"


def shown_measure(measure: Measure | None) -> str:
    """`0.12 → 0.50 [0.30, 0.70]`, with the interval of after."""
    if measure is None or measure.after is None:
        return "-"
    before = f"{measure.before.value:.3f} → " if measure.before else ""
    return before + shown_estimate(measure.after)


def shown_estimate(estimate: Estimate | None, sign: str = "") -> str:
    """`0.50 [0.30, 0.70]`."""
    if estimate is None:
        return "-"
    value = f"{estimate.value:{sign}.3f}"
    if estimate.low is None or estimate.high is None:
        return f"{value} [too few prompts]"
    return f"{value} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


def shown_p(value: float | None) -> str:
    """Three digits, never 0."""
    if value is None:
        return "-"
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def _without_empty(lines: list[list[str]]) -> list[list[str]]:
    return [line for line in lines if set(line[1:4]) != {"-"}]


def estimates_frame(evaluation: Evaluation) -> pd.DataFrame:
    """Every number: kind, by, group, measure, when, value, low, high, num_rows, num_prompts, p_value."""
    lines = [
        {"kind": group.kind, "by": group.by, "group": group.name, "measure": name, "when": when, **asdict(estimate)}
        for group in evaluation.groups
        for name, measure in group.measures.items()
        for when in TIMES
        if (estimate := getattr(measure, when)) is not None
    ]
    return pd.DataFrame(lines)


def table_frame(evaluation: Evaluation, by: By, kind: Kind | None) -> pd.DataFrame:
    """One table's values: a line a group, columns (measure, before | after | change); NaN where there is none.

    Raises:
        UserError: `kind` is None and there are several, or there are no such rows.
    """
    chosen = one_kind(evaluation.kinds, kind)
    lines = {
        group.name: {
            (name, when): estimate.value
            for name, measure in group.measures.items()
            for when in TIMES
            if (estimate := getattr(measure, when)) is not None
        }
        for group in evaluation.of(chosen, by)
    }
    found = pd.DataFrame.from_dict(lines, orient="index", dtype=float)
    return found if lines else pd.DataFrame(columns=pd.MultiIndex.from_tuples([], names=["measure", "when"]))


def one_kind(kinds: Sequence[Kind], kind: Kind | None) -> Kind:
    """The kind of rows that a table is of: the one that is asked for, or the only one.

    Raises:
        UserError: `kind` is None and there are several, or there are no such rows.
    """
    if kind is None and len(kinds) > 1:
        raise UserError(f"there are {' and '.join(kinds)} rows, which are in no table together: say which kind")
    chosen = kind or kinds[0]
    if chosen not in kinds:
        raise UserError(f"there are no {chosen} rows, only {' and '.join(kinds)}")
    return chosen


def rows_frame(rows: Sequence[EvaluatedRow]) -> pd.DataFrame:
    """One line a row: its fields, and those of its outcomes as `before.answer`, `after.judgements.phrases.verdict`."""
    return pd.json_normalize([asdict(row) for row in rows])
