"""Answers to read: the first of each kind by the ids of their rows, so that nobody has chosen them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from markupsafe import Markup

from dist_moe.evaluation.measures import refused
from dist_moe.evaluation.record import Evaluation
from dist_moe.evaluation.rows import EvaluatedRow, Outcome, before_noun
from dist_moe.report.page.blocks import Section, answer_pair, details, joined, paragraph
from dist_moe.report.page.charts import cut
from dist_moe.report.page.contents import RunContents

EACH = 3
MOST_LETTERS = 1500


@dataclass(frozen=True, slots=True)
class Sort:
    """Rows that are shown together."""

    title: str
    label: str
    is_one: Callable[[bool | None, bool | None], bool]
    """From whether the answer before and the one after refuse; None: not known."""


SORTS = (
    Sort(
        "Unsafe prompts that are refused now, and were not", "unsafe", lambda before, after: bool(after) and not before
    ),
    Sort("Unsafe prompts that are not refused", "unsafe", lambda before, after: after is False),
    Sort("Safe prompts that are refused", "safe", lambda before, after: bool(after)),
    Sort("Safe prompts that are answered", "safe", lambda before, after: after is False),
)


def answers(run: RunContents, key: str) -> Section | None:
    """None: the run was not evaluated."""
    if run.evaluation is None:
        return None
    kind = run.evaluation.kinds[0]
    intro = (
        f"Of the {before_noun(kind)} rows, for each sort the first {EACH} by the rows' ids: nobody has chosen them. "
        "Answers are quoted as the model wrote them, with special tokens; they may be wrong, offensive or harmful."
    )
    parts = [paragraph(intro)]
    if not run.prompts:
        parts.append(paragraph("The prompts' texts are not at hand: their files are gone or have changed."))
    for sort in SORTS:
        rows = [row for row in run.evaluation.rows if row.kind == kind and _is_one(row, sort, run.evaluation)]
        of_label = sum(row.kind == kind and row.label == sort.label for row in run.evaluation.rows)
        if rows:
            shown = joined(_shown(run, row) for row in rows[:EACH])
            parts.append(details(f"{sort.title}: {len(rows)} of {of_label}", shown))
    return Section("answers", "Answers", joined(parts))


def _is_one(row: EvaluatedRow, sort: Sort, evaluation: Evaluation) -> bool:
    judge = evaluation.facts.judges[0].name
    return row.label == sort.label and sort.is_one(refused(row, judge, "before"), refused(row, judge, "after"))


def _shown(run: RunContents, row: EvaluatedRow) -> Markup:
    prompt = run.prompts.get(row.id)
    return answer_pair(
        place=f"{row.category}, row {row.id} ({row.file.rpartition('/')[2]}:{row.place})",
        prompt=None if prompt is None else cut(prompt, MOST_LETTERS),
        outcomes=[*_outcomes(row)],
    )


def _outcomes(row: EvaluatedRow) -> Iterator[dict[str, object]]:
    for when, outcome in (("Before", row.before), ("After", row.after)):
        if outcome is not None:
            yield {
                "when": when + _cut_off(outcome),
                "answer": cut(outcome.answer, MOST_LETTERS),
                "judgements": [
                    {"judge": judge, "verdict": said.verdict, "why": said.why}
                    for judge, said in outcome.judgements.items()
                ],
            }


def _cut_off(outcome: Outcome) -> str:
    return "" if outcome.ended else f" (cut after {outcome.num_tokens} tokens)"
