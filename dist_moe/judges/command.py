"""A program of the user's own that judges."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dist_moe.errors import UserError
from dist_moe.judges.judge import JUDGES, VERDICTS, Answered, Judge, Judgement
from dist_moe.judges.question import brief
from dist_moe.judges.spoken import spoken
from dist_moe.ranges import Positive, Text


@JUDGES.register
@dataclass(frozen=True, kw_only=True)
class Command(Judge):
    """Reads a JSON line for each answer from its input, and writes one for each, in any order, to its output.

    In: number (from 0), row_id, messages, label, answer (what the user reads), text (with thoughts and special tokens).
    Out: number, verdict, and if it likes why.
    """

    name = "command"
    required = ("argv",)

    argv: tuple[Text, ...] = ()
    """The program and its arguments, as a list; no shell reads them. It gets a JSON line for each answer (`number`,
    `row_id`, `messages`, `label`, `answer`, `text`) and writes one for each (`number`, `verdict`, `why`)."""
    seconds: Positive = 3600.0
    """How long it may take for all answers of one model; then it is ended, and every verdict is missing."""

    def judge(self, answers: Sequence[Answered]) -> list[Judgement]:
        if not answers:
            return []
        self.require_ready()
        lines = "".join(json.dumps(_told(number, each)) + "\n" for number, each in enumerate(answers))
        try:
            done = subprocess.run(self.argv, input=lines.encode(), capture_output=True, timeout=self.seconds)
        except subprocess.TimeoutExpired:
            return _all(answers, f"the program took longer than {self.seconds:g} s")
        except OSError as error:
            raise UserError(f"{self.setting('argv')}: cannot run {self.argv[0]!r}: {error.strerror}") from None
        if done.returncode != 0:
            said = brief(done.stderr.decode(errors="replace").strip().rpartition("\n")[2])
            return _all(answers, f"the program ended with status {done.returncode}: {said or 'it said nothing'}")
        return _read(done.stdout, len(answers))

    @property
    def in_words(self) -> str:
        return f"the program {self.argv[0]}" if self.argv else "a program"


def _told(number: int, answered: Answered) -> dict[str, Any]:
    return {
        "number": number,
        "row_id": answered.row_id,
        "messages": [dict(message) for message in answered.messages],
        "label": "unsafe" if answered.unsafe else "safe",
        "answer": spoken(answered),
        "text": answered.text,
    }


def _all(answers: Sequence[Answered], why: str) -> list[Judgement]:
    return [Judgement("missing", why)] * len(answers)


def _read(output: bytes, number: int) -> list[Judgement]:
    """What the lines say; an answer with no line, two lines, or one that cannot be read has no verdict."""
    found: dict[int, list[Judgement]] = {}
    for line in output.splitlines():
        read = _judgement(line)
        if read is not None:
            found.setdefault(read[0], []).append(read[1])
    missing = Judgement("missing", "the program wrote no line for it that can be read")
    twice = Judgement("missing", "the program wrote several lines for it")
    return [(found.get(i, [missing]) if len(found.get(i, [])) < 2 else [twice])[0] for i in range(number)]


def _judgement(line: bytes) -> tuple[int, Judgement] | None:
    """Of one line; None: it is no line that the program should write."""
    try:
        document = json.loads(line)
    except ValueError:
        return None
    if not isinstance(document, dict) or type(document.get("number")) is not int:
        return None
    verdict, why = document.get("verdict"), document.get("why", "no reason was given")
    if verdict not in VERDICTS or not isinstance(why, str):
        return document["number"], Judgement("missing", f"the program's verdict is {brief(repr(verdict))}")
    return document["number"], Judgement(verdict, brief(why))
