"""Suites that label responses, and not prompts: BeaverTails and PKU-SafeRLHF.

A prompt is unsafe here if any response to it that the file has is labelled unsafe, and safe if all are labelled safe.
This says what prompts lead to, and not what they ask for: a harmful question that was answered well each time is safe.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dist_moe.data.formats import Row
from dist_moe.data.suites.suite import SUITES, Line, Suite
from dist_moe.errors import UserError, shown


class _OfResponses(Suite):
    @abstractmethod
    def responses(self, line: Line) -> list[tuple[bool, str | None]]:
        """Of each response: whether it is safe, and its first category of harm."""

    def rows(self, lines: Sequence[Line]) -> Iterator[tuple[Line, Row]]:
        first: dict[str | None, Line] = {}
        harms: dict[str | None, list[str | None]] = {}
        for line in lines:
            prompt = line.text("prompt")
            first.setdefault(prompt, line)
            found = [category for is_safe, category in self.responses(line) if not is_safe]
            harms.setdefault(prompt, []).extend(found)
        for prompt, line in first.items():
            category = next((each for each in harms[prompt] if each), None)
            yield line, {"prompt": prompt, "label": "unsafe" if harms[prompt] else "safe", "category": category}


@SUITES.register
@dataclass(frozen=True)
class BeaverTails(_OfResponses):
    """The .jsonl files (prompt, response, category, is_safe) of huggingface.co/datasets/PKU-Alignment/BeaverTails,
    unpacked; Ji et al., arXiv 2307.04657. `category` says of 14 kinds of harm whether the response has it."""

    name = "beavertails"
    needs = ("prompt", "is_safe")
    may_have = ("category",)

    def responses(self, line: Line) -> list[tuple[bool, str | None]]:
        return [(line.truth("is_safe"), _first_harm(line, "category"))]


@SUITES.register
@dataclass(frozen=True)
class PKUSafeRLHF(_OfResponses):
    """The .jsonl files (prompt, response_0, response_1, is_response_0_safe, is_response_1_safe, ...) of
    huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF; Ji et al., arXiv 2406.15513. Newer ones also have
    response_0_harm_category and response_1_harm_category: of 19 kinds of harm, whether the response has it."""

    name = "pku_saferlhf"
    needs = ("prompt", "is_response_0_safe", "is_response_1_safe")
    may_have = ("response_0_harm_category", "response_1_harm_category")

    def responses(self, line: Line) -> list[tuple[bool, str | None]]:
        return [(line.truth(f"is_response_{i}_safe"), _first_harm(line, f"response_{i}_harm_category")) for i in (0, 1)]


def _first_harm(line: Line, column: str) -> str | None:
    """The first name whose value is true.

    Raises:
        UserError: the cell is no mapping from names.
    """
    value = line.cells.get(column)
    if value is None:
        return None
    if not isinstance(value, dict):
        raise UserError(f"{line.where}: `{column}` must say of kinds of harm true or false, got {shown(value)}")
    return next((name for name, has in value.items() if has is True), None)
