"""An evaluation on disk: evaluation.json, sealed, with its facts and tables, and answers.jsonl, a line a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from dist_moe.artefacts import EXACT, Written, read_sealed, write_sealed
from dist_moe.errors import UserError
from dist_moe.evaluation.groups import By
from dist_moe.evaluation.harness import Capabilities
from dist_moe.evaluation.measures import WHEN
from dist_moe.evaluation.rows import KINDS, EvaluatedRow, Kind, read_rows, write_rows
from dist_moe.files import replacing_files
from dist_moe.judges.judge import VERDICTS
from dist_moe.stats.agreement import Agreement, agreement
from dist_moe.stats.measured import Group

FORMAT, VERSION = "dist_moe evaluation", 2
INDEX, ANSWERS = "evaluation.json", "answers.jsonl"
ADVICE = "remove it, or run `dist-moe evaluate` again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One of the judges."""

    facts: dict[str, Any]
    """Its name and settings."""
    in_words: str

    @property
    def name(self) -> str:
        return str(self.facts["name"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Disagreement:
    """Of two judges on the same answers."""

    first: str
    second: str
    when: str
    """before | after"""
    agreement: Agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class Silenced:
    """Experts to which no token was routed in the model after, which is else the one before."""

    masks: str
    """Name of the store whose masks they are of."""
    masks_digest: str
    batches: list[int] | None
    """Those whose masks together are silenced. None: all."""
    num_experts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationFacts:
    """What was evaluated, on which rows, and how."""

    model_name: str
    """The last part of the model's path: of a run, of its base model."""
    model_hash: str
    against_name: str | None
    """What `before` is: of a run its base model. None: there is no before."""
    against_hash: str | None
    experts_digest: str | None
    """Of a run: of its trained experts' index. None: a model directory was evaluated."""
    alpha: float = 1.0
    """Share of the trained experts' change that `after` has: base + alpha * (trained - base)."""
    tokenizer_hash: str
    data_hash: str
    files: list[str]
    """Whose rows were evaluated."""
    num_rows: int
    unknown: str | None
    """Why the trained rows are not known. None: they are, and were looked for."""
    num_not_compared: int
    """Rows that were compared with equal trained prompts only, because there are too many nearly equal ones."""
    judges: list[Judged]
    """The first one's verdicts are the rates."""
    seed: int
    settings: dict[str, Any]
    """Of `evaluation`, and what else the numbers follow from."""
    silenced: Silenced | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    facts: EvaluationFacts
    groups: list[Group]
    disagreements: list[Disagreement]
    answers: Written
    """The file beside it."""
    capabilities: Capabilities | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The facts, the tables, and every row with its answers."""

    facts: EvaluationFacts
    groups: list[Group]
    disagreements: list[Disagreement]
    rows: tuple[EvaluatedRow, ...]
    """In the order of their ids."""
    capabilities: Capabilities | None = None
    """What lm-evaluation-harness has measured of the same models; None: it was not asked."""

    @property
    def kinds(self) -> list[Kind]:
        """Kinds of rows that there are, each with tables of its own."""
        there = {row.kind for row in self.rows}
        return [kind for kind in KINDS if kind in there]

    def of(self, kind: Kind, by: By) -> list[Group]:
        """The groups of one table."""
        return [group for group in self.groups if (group.kind, group.by) == (kind, by)]

    def write(self, directory: Path) -> None:
        """Put both files into `directory`, in place of an earlier evaluation's; killed in between, there is none.

        Raises:
            UserError: it cannot be written.
        """
        with replacing_files(directory) as new:
            write_rows(new / ANSWERS, self.rows)
            index = _Index(
                facts=self.facts,
                groups=self.groups,
                disagreements=self.disagreements,
                answers=Written.of(new / ANSWERS),
                capabilities=self.capabilities,
            )
            write_sealed(new / INDEX, FORMAT, VERSION, asdict(index))
            (directory / INDEX).unlink(missing_ok=True)


def read_evaluation(directory: Path) -> Evaluation:
    """Read an evaluation.

    Raises:
        UserError: it cannot be read, is of another version, or not as it was written.
    """
    index = read_sealed(directory / INDEX, FORMAT, VERSION, _Index, ADVICE)[0]
    answers = directory / ANSWERS
    if not answers.is_file() or Written.of(answers) != index.answers:
        raise UserError(f"{answers} is not there, or not as it was written with {directory / INDEX}: {ADVICE}")
    return Evaluation(
        facts=index.facts,
        groups=index.groups,
        disagreements=index.disagreements,
        rows=tuple(read_rows(answers, ADVICE)),
        capabilities=index.capabilities,
    )


def disagreements_of(rows: Sequence[EvaluatedRow], judges: Sequence[str]) -> list[Disagreement]:
    """Each pair of judges, on the answers before and after; answers that one of them could not judge are left out."""
    classes = [verdict for verdict in VERDICTS if verdict != "missing"]
    found = []
    for first, second in combinations(judges, 2):
        for when in WHEN:
            outcomes = [outcome for row in rows if (outcome := row.outcome(when)) is not None]
            if outcomes:
                of_first, of_second = (
                    [outcome.judgements[name].verdict for outcome in outcomes] for name in (first, second)
                )
                compared = agreement(of_first, of_second, classes)
                found.append(Disagreement(first=first, second=second, when=when, agreement=compared))
    return found
