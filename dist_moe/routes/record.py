"""One record of a server's answer to one prompt: its routes, and what it says of the tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_moe.errors import UserError, shown
from dist_moe.routes.arrays import integers

ROUTES, PROMPT_ROUTES = "routed_experts", "prompt_routed_experts"
PROMPT_IDS = "prompt_token_ids"
ANSWER_IDS = ("token_ids", "output_ids")
STARTS = ("routed_experts_start_len", "routed_experts_prompt_start", "start")
"""Names under which servers say that the first tokens have been left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a server has said of one prompt; all but the routes may be unknown (None)."""

    where: str
    """File and line, or file and array."""
    routes: np.ndarray
    """Whole numbers, [tokens, layers, k], or one axis if the server sends no shape. Of prompt and answer, or of the
    answer alone if there are `prompt_routes`."""
    prompt_routes: np.ndarray | None
    prompt_ids: tuple[int, ...] | None
    """Token ids of the prompt."""
    num_prompt: int | None
    """Tokens of the prompt."""
    num_answer: int | None
    """Tokens that the server has generated; the last of them was never read, so it has no route."""


def id_of(line: Mapping[str, Any], where: str) -> str:
    """The prompt's id in a line of a file: `custom_id`, or else `id`.

    Raises:
        UserError: it is missing, or no text.
    """
    found = line.get("custom_id", line.get("id"))
    if type(found) is int:  # as in the files of prompts
        found = str(found)
    if not isinstance(found, str) or not found:
        raise UserError(f"{where}: `id` is {shown(found)}: expected the id of a prompt in the data")
    return found


def record_of(line: Mapping[str, Any], where: str) -> Record:
    """A line that holds a server's answer, in any of the forms of docs/servers.md.

    Raises:
        UserError: it has no routes, or something in it cannot be read.
    """
    found = _fields(line, where)
    for name in STARTS:
        if found.get(name) not in (None, 0):
            raise UserError(
                f"{where}: its routes begin at token {shown(found[name])} ({name}): ask again for those of all tokens"
            )
    if found.get(ROUTES) is None and found.get(PROMPT_ROUTES) is None:
        raise UserError(
            f"{where}: no `{ROUTES}`: start the server with --enable-return-routed-experts, and with SGLang ask for "
            "return_routed_experts"
        )
    ids, answer = found.get(PROMPT_IDS), next((found[name] for name in ANSWER_IDS if name in found), None)
    prompt_ids = None if ids is None else _ids(ids, f"{where}: `{PROMPT_IDS}`")
    answer_ids = None if answer is None else _ids(answer, f"{where}: `{ANSWER_IDS[0]}`")
    prompt_routes = found.get(PROMPT_ROUTES)
    return Record(
        where=where,
        routes=integers(found.get(ROUTES, []), f"{where}: `{ROUTES}`"),
        prompt_routes=None if prompt_routes is None else integers(prompt_routes, f"{where}: `{PROMPT_ROUTES}`"),
        prompt_ids=prompt_ids,
        num_prompt=_number(found, "prompt_tokens", where) if prompt_ids is None else len(prompt_ids),
        num_answer=_number(found, "completion_tokens", where) if answer_ids is None else len(answer_ids),
    )


def _fields(line: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What is said of the prompt, wherever in the line a server says it."""
    response: Any = line.get("response", line)
    if isinstance(response, Mapping):
        response = response.get("body", response)  # a line of a batch's results
    if not isinstance(response, Mapping):
        raise UserError(f"{where}: `response` is {shown(response)}: expected what the server has answered")
    choices = response.get("choices", [{}])
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], Mapping):
        raise UserError(f"{where}: expected one of `choices`: ask for one answer to each prompt")
    found: dict[str, Any] = {}
    for outer in (response, choices[0]):
        for part in (*(outer.get(name) for name in ("usage", "sglext", "meta_info")), outer):
            if isinstance(part, Mapping):
                found |= {name: value for name, value in part.items() if value is not None}
    for name in (ROUTES, PROMPT_ROUTES):
        if isinstance(found.get(name), Mapping):
            found |= {key: value for key, value in found[name].items() if key in STARTS}
    return found


def _ids(value: Any, where: str) -> tuple[int, ...]:
    array = integers(value, where)
    if array.ndim != 1:
        raise UserError(f"{where}: expected one list of token ids")
    return tuple(array.tolist())


def _number(found: Mapping[str, Any], name: str, where: str) -> int | None:
    number = found.get(name)
    if number is not None and (type(number) is not int or number < 0):
        raise UserError(f"{where}: `{name}` is {shown(number)}, expected a number of tokens")
    return number
