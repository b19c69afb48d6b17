"""The digest of all tokens, and a template's clock."""

from datetime import UTC, date, datetime

import pytest
from transformers.utils import chat_template_utils

from dist_moe.data.encode import encode
from dist_moe.data.rows import Message, Prompt
from dist_moe.data.tokens import Encoded, tokens_hash

DATED = (
    "{% set today = strftime_now('%d %b %Y') if strftime_now is defined else 'never' %}"
    "{% for m in messages %}{{ today }} {{ m.content }}{{ eos_token }}{% endfor %}"
)
ROW = Prompt("i", (Message("user", "hi"),), "yes", True, None, "rows.jsonl:4")


def on(day, monkeypatch):
    """Let transformers believe that it is another day."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(*day, tzinfo=tz or UTC)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


def test_provenance_does_not_depend_on_the_day(tokenizer, monkeypatch):
    texts, hashes, plain = [], set(), set()
    for day in ((2026, 3, 4), (2031, 12, 24)):
        on(day, monkeypatch)
        turns = [{"role": "user", "content": "hi"}]
        other = f"{DATED}{{# {day} #}}"  # one that nobody has told the day
        plain.add(tokenizer.apply_chat_template(turns, chat_template=other, tokenize=False))
        found = encode([ROW], tokenizer, 1024, DATED)
        texts.append(tokenizer.decode(found.rows[0].prompt_ids))
        hashes.add(tokens_hash(found.rows))
        assert found.findings.date_asked
    assert texts == ["01 Jan 2025 hi<eos>01 Jan 2025 "] * 2
    assert len(hashes) == 1
    assert len(plain) == 2, "transformers has not asked the faked clock: nothing was tested"


def test_another_date_is_another_provenance_and_is_not_asked_for_in_vain(tokenizer):
    found = [encode([ROW], tokenizer, 1024, DATED, today=day) for day in (date(2025, 1, 1), date(2024, 7, 26))]
    assert tokens_hash(found[0].rows) != tokens_hash(found[1].rows)
    assert tokenizer.decode(found[1].rows[0].prompt_ids).startswith("26 Jul 2024 hi")
    assert not encode([ROW], tokenizer, 1024).findings.date_asked


ENCODED = Encoded((5, 6, 7), (8, 9), span=(0, 2), content=((1, 2),), gap=(3, 4), alone_ids=(5, 6))


@pytest.mark.parametrize(
    "other",
    [
        Encoded((5, 6), (7, 8, 9), span=(0, 2), content=((1, 2),), gap=(3, 4), alone_ids=(5, 6)),
        Encoded((5, 6, 7), (8, 10), span=(0, 2), content=((1, 2),), gap=(3, 4), alone_ids=(5, 6)),
        Encoded((5, 6, 7), (8, 9), span=(0, 3), content=((1, 2),), gap=(3, 4), alone_ids=(5, 6)),
        Encoded((5, 6, 7), (8, 9), span=(0, 2), content=((1, 3),), gap=(3, 4), alone_ids=(5, 6)),
        Encoded((5, 6, 7), (8, 9), span=(0, 2), content=((1, 2),), alone_ids=(5, 6)),
        Encoded((5, 6, 7), (8, 9), span=(0, 2), content=((1, 2),), gap=(3, 4)),
    ],
)
def test_provenance_covers_ids_boundary_and_counted_positions(other):
    assert tokens_hash([ENCODED]) != tokens_hash([other])
    assert tokens_hash([ENCODED, other]) != tokens_hash([other, ENCODED])
