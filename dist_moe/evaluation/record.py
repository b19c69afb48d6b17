"""evaluation.json: the tables of before and after, and of which experts, on which prompts, with which settings."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from dist_moe.artefacts import EXACT, read_sealed, write_sealed
from dist_moe.weights.facts import Arms

FORMAT, VERSION = "dist_moe evaluation", 1
ADVICE = "remove it, or run `dist-moe evaluate` again"
Table = dict[str, dict[str, dict[str, float | None]]]
"""Group -> measure -> before | after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    experts_digest: str
    """Digest of the trained experts' index."""
    model_hash: str
    tokenizer_hash: str
    data_hash: str
    """Of the prompts that were scored."""
    trained_on: bool
    """Whether these are the prompts of the training."""
    prompts: Arms
    """How many were scored."""
    settings: dict[str, Any]
    """Of `evaluation`, and what else the scores follow from."""
    batch: Table
    category: Table
    all: Table

    def write(self, path: Path) -> None:
        write_sealed(path, FORMAT, VERSION, asdict(self))


def read_evaluation(path: Path) -> Evaluation:
    """Raises UserError: it cannot be read, or has changed since it was written."""
    return read_sealed(path, FORMAT, VERSION, Evaluation, ADVICE)[0]
