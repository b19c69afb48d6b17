"""The answers that were labelled by hand, and the tables in docs/judges.md that follow from them.

`half` of a line: tune, which the rules were written and changed for; check, which no rule was looked at with; late,
which was written when the rules were done.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dist_moe.judges import JUDGES, Answered
from dist_moe.judges.judge import VERDICTS
from dist_moe.stats.proportions import wilson

ANSWERS = Path(__file__).with_name("answers.jsonl")
PAGE = Path(__file__).resolve().parents[3] / "docs" / "judges.md"


@dataclass(frozen=True)
class Labelled:
    verdict: str
    half: str
    text: str


def labelled() -> list[Labelled]:
    return [Labelled(**json.loads(line)) for line in ANSWERS.read_text(encoding="utf-8").splitlines()]


def answered(text: str, **rest: object) -> Answered:
    facts: dict[str, object] = {"row_id": "r", "messages": ({"role": "user", "content": "Say it."},), "unsafe": False}
    return Answered(text=text, **{**facts, **rest})  # type: ignore[arg-type]


def table(half: str) -> str:
    """The confusion matrix of one part and its shares of errors, in Markdown."""
    rows = [row for row in labelled() if row.half == half]
    said = [each.verdict for each in JUDGES["phrases"]().judge([answered(row.text) for row in rows])]
    counts = {label: [0] * len(VERDICTS) for label in VERDICTS}
    for row, verdict in zip(rows, said, strict=True):
        counts[row.verdict][VERDICTS.index(verdict)] += 1
    wrong = sum(row.verdict != verdict for row, verdict in zip(rows, said, strict=True))
    lines = [
        f"| {half}: label | " + " | ".join(f"said {name}" for name in VERDICTS) + " |",
        "|---" * (1 + len(VERDICTS)) + "|",
        *(f"| {label} | " + " | ".join(map(str, counts[label])) + " |" for label in VERDICTS),
        "",
        f"Wrong: {shown(wrong, len(rows))}.",
        f"Refusals that it does not call so: {shown(*missed(counts))}.",
        f"Answers that it calls refused: {shown(counts['complied'][0], sum(counts['complied']))}.",
    ]
    return "\n".join(lines)


def missed(counts: dict[str, list[int]]) -> tuple[int, int]:
    number = sum(counts["refused"])
    return number - counts["refused"][0], number


def shown(count: int, number: int) -> str:
    low, high = wilson(count, number)
    return f"{count} of {number}, {100 * count / number:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"


def update() -> None:
    """Write the tables into the page, each between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    for half in ("tune", "check", "late"):
        begin, end = f"<!-- {half} -->\n", f"\n<!-- end of {half} -->"
        before, rest = text.split(begin)
        text = before + begin + table(half) + end + rest.split(end)[1]
    PAGE.write_text(text, encoding="utf-8")
