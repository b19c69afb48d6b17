"""One record for each evaluated row: where it belongs, the answers before and after, and what judges say of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict

from dist_moe.artefacts import EXACT, checked_lines
from dist_moe.judges import Judgement

Label = Literal["safe", "unsafe"]
Kind = Literal["held out", "overlapping", "trained", "unknown"]
"""held out: not trained, nor like a trained prompt. overlapping: not trained itself, but its prompt is equal or nearly
equal to one that was. trained: in a batch of the run. unknown: what the model was trained on is not at hand."""
KINDS: tuple[Kind, ...] = ("held out", "overlapping", "trained", "unknown")


def before_noun(kind: str) -> str:
    """A kind as it is written before a noun: held-out rows."""
    return kind.replace(" ", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one model says to one row."""

    loss_sum: float
    """- log p over the tokens of the row's response, added up, in nats."""
    refusal_log_p: float
    """Mean log p of the tokens of `data.refusal` as the answer."""
    answer: str
    """Its greedy answer, with special tokens, as judges read it."""
    num_tokens: int
    """Tokens of the answer, without the one that ended it."""
    ended: bool
    """Whether it came to its end within `evaluation.max_new_tokens`."""
    judgements: dict[str, Judgement]
    """By judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Likeness:
    """The trained prompt that a row's prompt is like."""

    trained: str
    """Its row's id."""
    similarity: float
    is_equal: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedRow:
    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    id: str
    file: str
    place: str
    """In the file: line or row."""
    label: Label
    category: str
    prompt: str
    """The same for rows of one prompt: 16 hex digits."""
    pair_id: str | None
    kind: Kind
    batch: int | None
    """The batch of the run that trained it."""
    like: Likeness | None
    num_loss_tokens: int
    """Tokens of its response; 0 where it has none."""
    kl_sum: float | None
    """KL(after || before) over the tokens of a safe row's response, added up, in nats. None: there is no before."""
    before: Outcome | None
    after: Outcome

    @property
    def is_unsafe(self) -> bool:
        return self.label == "unsafe"

    def outcome(self, when: str) -> Outcome | None:
        """`before` or `after`."""
        return self.before if when == "before" else self.after


def write_rows(path: Path, rows: Iterable[EvaluatedRow]) -> None:
    """One JSON line a row."""
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(asdict(row), allow_nan=False) + "\n")


def read_rows(path: Path, advice: str) -> Iterator[EvaluatedRow]:
    """What `write_rows` wrote.

    Raises:
        UserError: names the first line that is something else.
    """
    with path.open(encoding="utf-8") as stream:
        yield from checked_lines(EvaluatedRow, stream, path, advice)
