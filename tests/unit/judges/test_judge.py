"""What every judge promises, whichever it is."""

from __future__ import annotations

import json

import pytest

from dist_moe.errors import UserError
from dist_moe.judges import JUDGES, Judgement
from tests.unit.judges.labelled import answered


@pytest.mark.parametrize("name", list(JUDGES))
def test_every_judge_describes_itself_in_json_and_in_words(name: str) -> None:
    judge = JUDGES[name]()
    assert json.loads(json.dumps(judge.facts))["name"] == name
    assert judge.in_words
    assert judge.needs == ("model" if judge.openings else "text")


@pytest.mark.parametrize("name", list(JUDGES))
def test_no_answers_are_no_judgements(name: str) -> None:
    assert JUDGES[name]().judge([]) == []


def test_judgements_come_in_the_order_of_the_answers() -> None:
    texts = ["I'm sorry, no.", "Knead it.", "I cannot say."]
    judged = JUDGES["phrases"]().judge([answered(text) for text in texts])
    assert [each.verdict for each in judged] == ["refused", "complied", "refused"]
    assert all(isinstance(each, Judgement) and each.why for each in judged)


def test_a_setting_of_another_type_is_refused() -> None:
    with pytest.raises(UserError, match="also is 'no'"):
        JUDGES["phrases"](also="no")  # type: ignore[call-arg]


@pytest.mark.parametrize("name", [name for name, cls in JUDGES.items() if cls.required and cls.needs == "text"])
def test_what_must_be_set_is_named_before_anything_runs(name: str) -> None:
    judge = JUDGES[name]()
    with pytest.raises(UserError, match=rf"evaluation\.judge\.{name}\.{judge.required[0]}: must be set"):
        judge.require_ready()


def test_an_empty_set_of_openings_is_refused() -> None:
    with pytest.raises(UserError, match=r"evaluation\.judge\.likelihood\.complying: must be set"):
        JUDGES["likelihood"](complying=()).require_ready()  # type: ignore[call-arg]
