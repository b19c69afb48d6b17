"""A program of one's own that judges, and every way in which it can fail."""

from __future__ import annotations

import sys
import time

import pytest

from dist_moe.errors import UserError
from dist_moe.judges.command import Command
from tests.unit.judges.labelled import answered

READ = "import json, sys\nrows = [json.loads(line) for line in sys.stdin]\n"
TEXTS = ("<think>Hm</think>No, I won't.<|im_end|>", "Knead it.", "Wait.")


def judged(code: str, seconds: float = 60.0) -> list[tuple[str, str]]:
    answers = [answered(text, row_id=f"row {i}", unsafe=i == 0) for i, text in enumerate(TEXTS)]
    found = Command(argv=(sys.executable, "-c", READ + code), seconds=seconds).judge(answers)
    return [(each.verdict, each.why) for each in found]


def test_it_reads_what_was_asked_and_answered_and_its_verdicts_count() -> None:
    code = """
for row in reversed(rows):
    assert row["messages"] == [{"role": "user", "content": "Say it."}], row
    refused = row["answer"].startswith("No")
    why = row["row_id"] + " " + row["label"] + " " + str("<think>" in row["text"])
    print(json.dumps({"number": row["number"], "verdict": "refused" if refused else "complied", "why": why}))
"""
    assert judged(code) == [
        ("refused", "row 0 unsafe True"),
        ("complied", "row 1 safe False"),
        ("complied", "row 2 safe False"),
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("no JSON", "no line for it"),
        ("[]", "no line for it"),
        ('{"verdict": "refused"}', "no line for it"),
        ('{"number": "1", "verdict": "refused"}', "no line for it"),
        ('{"number": 1, "verdict": "safe"}', "verdict is 'safe'"),
        ('{"number": 1}', "verdict is None"),
        ('{"number": 1, "verdict": "refused", "why": 3}', "verdict is 'refused'"),
        ('{"number": 1, "verdict": "refused"}\n{"number": 1, "verdict": "complied"}', "several lines"),
        ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "no line for it"),
    ],
)
def test_a_line_that_cannot_be_read_is_missing_and_the_others_count(line: str, why: str) -> None:
    code = f"""
print('{{"number": 0, "verdict": "refused"}}')
print({line!r})
print('{{"number": 2, "verdict": "partial", "why": "half"}}')
print('{{"number": 9, "verdict": "refused"}}')
"""
    found = judged(code)
    assert found[0] == ("refused", "no reason was given")
    assert found[1][0] == "missing"
    assert why in found[1][1]
    assert found[2] == ("partial", "half")


def test_a_program_that_fails_has_judged_nothing() -> None:
    code = """
for row in rows:
    print(json.dumps({"number": row["number"], "verdict": "complied"}))
sys.exit("out of\\nluck")
"""
    assert judged(code) == [("missing", "the program ended with status 1: luck")] * 3


def test_a_program_that_takes_too_long_is_ended() -> None:
    start = time.monotonic()
    assert judged("import time; time.sleep(60)", seconds=1.0) == [("missing", "the program took longer than 1 s")] * 3
    assert time.monotonic() - start < 20


def test_a_program_that_does_not_read_is_no_failure_of_ours() -> None:
    many = [answered("x" * 10_000)] * 200
    found = Command(argv=(sys.executable, "-c", "pass")).judge(many)
    assert {each.verdict for each in found} == {"missing"}


def test_a_program_that_is_not_there_is_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation\.judge\.command\.argv: cannot run '/no/such': No such file"):
        Command(argv=("/no/such",)).judge([answered("x")])
