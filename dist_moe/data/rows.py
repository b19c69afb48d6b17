"""Reads the rows of prompt files into values that depend neither on the order nor on the format of the files.

A row has `prompt` (text) or `messages` (a list of {role, content} that ends with the user; JSON in a .csv cell) and
`label` (safe | unsafe). Optional are `response` (`chosen` is another name for it), `category`, `id`, `pair_id` (shared
by a safe and an unsafe row that differ in little else), `span` (a part of the text whose tokens `analysis.tokens: span`
counts), and `rejected` (a worse answer than the response, for `train.objective.dpo`). Other columns, and other keys of
a message, are ignored. An empty cell, blank text and null all mean "not given".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from dist_moe.data.formats import Row, listed, read_rows
from dist_moe.data.suites import read_suite, suite_of
from dist_moe.errors import UserError, shown

COLUMNS = ("id", "prompt", "messages", "response", "label", "category", "pair_id", "span", "chosen", "rejected")
"""All columns that are read; the readers drop the others."""
ROLES = ("system", "user", "assistant")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One row. `source` is "file:line" (in binary formats "file:row", from 1)."""

    id: str
    messages: tuple[Message, ...]
    response: str | None
    unsafe: bool
    category: str | None
    source: str
    pair_id: str | None = None
    span: str | None = None
    rejected: str | None = None
    """An answer that is worse than the response."""

    @property
    def question(self) -> str:
        """Canonical JSON of the messages, with white space normalised. Rows with the same question are one prompt."""
        return json.dumps([[message.role, " ".join(message.content.split())] for message in self.messages])

    @property
    def content(self) -> str:
        """Canonical JSON of the whole row, except its id and place."""
        turns = [[message.role, message.content] for message in self.messages]
        rest = [self.pair_id, self.span, self.rejected]
        while rest and rest[-1] is None:  # hashes of rows without a later column are what they were before it
            rest.pop()
        return json.dumps([turns, self.response, self.unsafe, self.category, *rest])


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts sorted by id, the SHA-256 of all their ids and contents, and notes for the console."""

    prompts: Sequence[Prompt]
    data_hash: str
    notes: tuple[str, ...]


def read_prompts(paths: Sequence[Path], refusal: str) -> PromptSet:
    """Read all rows of all files; `NAME=FILE` is a file of the suite of that name.

    `refusal` becomes the response of unsafe rows without one, and part of their content.

    A row without an id gets the first 16 hex digits of its content's SHA-256; exact copies of it are dropped.

    Raises:
        UserError: a row cannot be used, or an id is given twice; says file and line.
    """
    prompts: dict[str, Prompt] = {}
    unnamed: set[str] = set()
    num_copies = num_refusals = num_silent = 0
    for path, rows in map(_file, paths):
        for number, row, names in rows:
            parsed = parse_row(row, f"{path}:{number}", names)
            prompt = replace(parsed, response=refusal) if parsed.unsafe and parsed.response is None else parsed
            if not prompt.id:
                prompt = replace(prompt, id=sha256(prompt.content.encode()).hexdigest()[:16])
                if prompt.id in unnamed:
                    num_copies += 1
                    continue
                unnamed.add(prompt.id)
            if prompt.id in prompts:
                first = prompts[prompt.id].source
                raise UserError(
                    f"{prompt.source}: the id {shown(prompt.id)} is already that of {first}; ids must be unique"
                )
            prompts[prompt.id] = prompt
            num_refusals += parsed.response is None and parsed.unsafe
            num_silent += parsed.response is None and not parsed.unsafe
    ordered = tuple(prompts[name] for name in sorted(prompts))
    notes = (
        (num_copies, "exact copies of other rows: removed"),
        (num_refusals, "unsafe rows without a response: they get data.refusal"),
        (num_silent, "safe rows without a response: they are not trained, and have no completion tokens"),
    )
    data_hash = sha256(json.dumps([[prompt.id, prompt.content] for prompt in ordered]).encode()).hexdigest()
    return PromptSet(ordered, data_hash, tuple(f"{count} {note}" for count, note in notes if count))


def _file(path: Path) -> tuple[Path, Iterator[tuple[int, Row, Sequence[str]]]]:
    """A file, and its rows as `read_rows` has them."""
    suite = suite_of(path)
    return (path, read_rows(path, COLUMNS)) if suite is None else (suite[1], read_suite(*suite))


def parse_row(row: Row, source: str, names: Sequence[str] | None = None) -> Prompt:
    """Check a row. `id` is empty and `response` is None if they are not given.

    Args:
        row: cells by column.
        source: place of the row, for messages.
        names: all columns of the file there, to list them if one is missing.

    Raises:
        UserError: something in the row is wrong; names `source`.
    """
    names = tuple(row) if names is None else names
    text, messages = _text(row, "prompt", source), row.get("messages") or None
    if (text is None) == (messages is None):
        found = "both" if text else "neither"
        absent = "" if text or {"prompt", "messages"} & {*names} else f"; the columns there are {listed(names)}"
        raise UserError(f"{source}: expected either `prompt` or `messages`, with text in it, got {found}{absent}")
    label = row.get("label") or None
    if label not in ("safe", "unsafe"):
        absent = "" if "label" in names else f"; the columns there are {listed(names)}"
        raise UserError(f"{source}: `label` must be safe or unsafe, got {shown(label)}{absent}")
    for key in ("id", "pair_id"):
        name = row.get(key)
        if isinstance(name, int) and not isinstance(name, bool):  # a number in .jsonl is text in .csv
            row = {**row, key: str(name)}
    return Prompt(
        id=_text(row, "id", source) or "",
        messages=_messages(messages, source) if text is None else (Message("user", text),),
        response=_response(row, source),
        unsafe=label == "unsafe",
        category=_text(row, "category", source),
        source=source,
        pair_id=_text(row, "pair_id", source),
        span=_text(row, "span", source),
        rejected=_text(row, "rejected", source),
    )


def row_of(prompt: Prompt) -> Row:
    """The cells that `parse_row` reads as this prompt."""
    return {
        "id": prompt.id,
        "messages": [{"role": message.role, "content": message.content} for message in prompt.messages],
        "response": prompt.response,
        "label": "unsafe" if prompt.unsafe else "safe",
        "category": prompt.category,
        "pair_id": prompt.pair_id,
        "span": prompt.span,
        "rejected": prompt.rejected,
    }


def _response(row: Row, source: str) -> str | None:
    """What is trained: `chosen` is another name for it."""
    response, chosen = _text(row, "response", source), _text(row, "chosen", source)
    if response is not None and chosen is not None:
        raise UserError(f"{source}: expected `response` or `chosen`, which is another name for it, got both")
    if response is None and chosen is None and _text(row, "rejected", source) and row.get("label") == "safe":
        raise UserError(f"{source}: `rejected` has no answer beside it that is better: expected `chosen` or `response`")
    return response if chosen is None else chosen


def _messages(messages: Any, source: str) -> tuple[Message, ...]:
    if not isinstance(messages, list):
        raise UserError(f"{source}: `messages` must be a list of {{role, content}}, got {shown(messages)}")
    turns = []
    for i, message in enumerate(messages):
        where = f"{source}: messages[{i}]"
        if not isinstance(message, dict):
            raise UserError(f"{where}: expected {{role, content}}, got {shown(message)}")
        role, content = message.get("role"), _text(message, "content", where)
        if role not in ROLES:
            raise UserError(f"{where}: `role` must be one of {', '.join(ROLES)}, got {shown(role)}")
        if content is None:
            raise UserError(f"{where}: `content` is empty")
        turns.append(Message(role, content))
    if turns[-1].role != "user":
        raise UserError(f"{source}: the last of `messages` must be the user's; the answer to it goes in `response`")
    return tuple(turns)


def _text(row: Row, key: str, where: str) -> str | None:
    """The text of a cell; None if it is not given."""
    value = row.get(key)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str):
        raise UserError(f"{where}: `{key}` must be text, got {shown(value)}")
    if _SURROGATE.search(value):
        raise UserError(f"{where}: `{key}` has half of a surrogate pair (\\ud800-\\udfff), which no tokenizer accepts")
    return value
