"""What the base model says to some rows, kept in a file: a comparison asks it once, and not again for each run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from dist_moe.artefacts import EXACT, read_sealed, write_sealed
from dist_moe.errors import UserError
from dist_moe.evaluation.rows import Outcome

FORMAT, VERSION = "dist_moe base answers", 2
BASE_ANSWERS = "base.json"
"""Its file, in the directory of all runs of a comparison."""
ADVICE = "remove it, and give the same command again: the base model is then asked anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseAsked:
    """All that the answers depend on: who is asked what, and who judges."""

    model_hash: str
    dtype: str
    """Setting of the weights in memory."""
    data_hash: str
    tokens_hash: str
    """Of all token ids that the model is given: rows, what inference is given, and beginnings of answers."""
    end_ids: list[int]
    """Tokens that end an answer."""
    judges: list[dict[str, Any]]
    """Name and settings of each."""
    max_new_tokens: int
    micro_batch_tokens: int
    ep_size: int
    packed: bool
    """These three decide how rows share a pass, and so the rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseAnswers:
    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    asked: BaseAsked
    outcomes: list[Outcome]
    """Of each row, in the order of their ids."""

    @property
    def are_whole(self) -> bool:
        """Whether every judge has judged every answer; what a judge has missed, it may judge another time."""
        return all(said.verdict != "missing" for each in self.outcomes for said in each.judgements.values())

    def write(self, path: Path) -> None:
        write_sealed(path, FORMAT, VERSION, asdict(self))


def read_base_answers(path: Path, asked: BaseAsked, num_rows: int) -> list[Outcome] | None:
    """What `BaseAnswers.write` wrote; None: there is no file, or the base was asked something else.

    Raises:
        UserError: the file cannot be read, is of another version, or not as it was written.
    """
    if not path.exists():
        return None
    found = read_sealed(path, FORMAT, VERSION, BaseAnswers, ADVICE)[0]
    if found.asked != asked:
        return None
    if len(found.outcomes) != num_rows:
        raise UserError(f"{path} has answers to {len(found.outcomes)} rows, expected {num_rows}: {ADVICE}")
    return found.outcomes
