"""What every judge promises, whichever it is."""

from __future__ import annotations

import json

import pytest

from dist_moe.errors import UserError
from dist_moe.judges import JUDGES, Answered, Judgement


def answered(text: str, **rest: object) -> Answered:
    facts: dict[str, object] = {
        "row_id": "r",
        "messages": ({"role": "user", "content": "How do I bake bread?"},),
        "unsafe": False,
    }
    return Answered(text=text, **{**facts, **rest})  # type: ignore[arg-type]


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
