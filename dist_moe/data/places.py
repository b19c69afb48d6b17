"""Finds the messages and the answer in the text that a chat template writes.

A template may trim a message, leave it out, or write a think block or a channel before an answer. So it is rendered a
second time with a marker in place of each message: what stands between markers is the template's own text. If that does
not work, as with a template that looks into the messages, their texts are searched for in order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dist_moe.data.rows import Message, Prompt
from dist_moe.data.template import MARK, ChatTemplate
from dist_moe.errors import UserError

Range = tuple[int, int]
_MARKS = re.compile(MARK.format(r"(\d+)"))


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a row. All ranges are half-open, in characters of `text`."""

    text: str
    """The whole text, with the answer if the row has one."""
    asked: str
    """The input of inference: the conversation up to where the model starts to answer."""
    messages: tuple[Range, ...]
    """Ranges of the messages' texts, without blanks around them, in order."""
    num_lost: int
    """Number of messages that the template leaves out or changes."""
    answer: Range | None
    is_changed: bool
    """The template writes another answer than the row has; differences in surrounding blanks do not count."""


def rendered(prompt: Prompt, template: ChatTemplate) -> Rendered:
    """Render a row, and find its messages.

    Raises:
        UserError: the template fails on the row, or does not write its answer.
    """
    asked = template.render(prompt.messages, prompt.source, to_answer=True)
    if prompt.response is None:
        marked = template.marked(prompt.messages, prompt.source, to_answer=True)
        found = _by_marks(marked, prompt.messages, asked) or _by_search(prompt.messages, asked)
        return Rendered(asked, asked, *_messages(found, prompt, asked), None, is_changed=False)
    messages = (*prompt.messages, Message("assistant", prompt.response))
    text = template.render(messages, prompt.source, to_answer=False)
    marked = template.marked(messages, prompt.source, to_answer=False)
    found = _by_marks(marked, messages, text) or _by_search(messages, text)
    ranges, num_lost = _messages(found, prompt, text)
    answers = [(start, stop) for number, start, stop in found if number == len(prompt.messages)]
    answer = answers[-1] if answers else _rest(text, asked, marked, ranges[-1][1] if ranges and not num_lost else None)
    if text.startswith(asked):
        answer = max(answer[0], len(asked)), answer[1]
    if not text[slice(*answer)].strip():
        raise UserError(
            f"{prompt.source}: the chat template does not write the answer, or not after the conversation, so prompt "
            "and response have no boundary; name another template in data.chat_template"
        )
    return Rendered(text, asked, ranges, num_lost, answer, is_changed=not answers)


def _by_marks(marked: str, messages: Sequence[Message], text: str) -> list[tuple[int, int, int]]:
    """(number of the message, start, stop) for each message, found from `marked`; requires that `text` is `marked` with
    the messages, trimmed or not, in place of the markers."""
    own, *pieces = _MARKS.split(marked)
    if not text.startswith(own):
        return []
    found, at = [], len(own)
    for number, own in zip(map(int, pieces[::2]), pieces[1::2], strict=True):
        written = next((v for v in _variants(messages[number].content) if text.startswith(v + own, at)), None)
        if written is None:
            return []
        found.append((number, at, at + len(written)))
        at += len(written) + len(own)
    return found if at == len(text) else []


def _variants(content: str) -> tuple[str, ...]:
    """The forms in which templates write a message: unchanged, or without blanks or line ends, on either side or on
    both sides."""
    forms = [content, content.strip(), content.strip("\n")]
    sides = [content.lstrip(), content.rstrip(), content.lstrip("\n"), content.rstrip("\n")]
    return tuple(dict.fromkeys((*forms, *sides)))


def _by_search(messages: Sequence[Message], text: str) -> list[tuple[int, int, int]]:
    """Like `_by_marks`, for those messages that are found in the text one after the other."""
    found, at = [], 0
    for number, message in enumerate(messages):
        content = message.content.strip()
        start = text.find(content, at)
        if start >= 0:
            at = start + len(content)
            found.append((number, start, at))
    return found


def _messages(found: list[tuple[int, int, int]], prompt: Prompt, text: str) -> tuple[tuple[Range, ...], int]:
    """The ranges of the conversation's messages, without blanks around them, and the number of messages without one."""
    number_of = len(prompt.messages)
    ranges = []
    for number, start, stop in found:
        own = text[start:stop]
        if number < number_of:
            ranges.append((start + len(own) - len(own.lstrip()), start + len(own.rstrip())))
    return tuple(sorted(ranges)), number_of - len({number for number, *_ in found if number < number_of})


def _rest(text: str, asked: str, marked: str, conversation_stop: int | None) -> Range:
    """The range of an answer that the template rewrites: all text where answers stand; else an empty range."""
    start = num_common(text, asked)
    if start < len(asked) and (conversation_stop is None or start < conversation_stop):
        return len(text), len(text)
    own = _MARKS.split(marked)[-1]
    return start, len(text) - (len(own) if text.endswith(own) else 0)


def num_common(one: str, other: str) -> int:
    """Length of the common prefix of two texts."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)
