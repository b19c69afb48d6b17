"""What the model before says to rows that several runs are evaluated on: asked once, and read for the others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_moe.data.tokens import tokens_hash
from dist_moe.evaluation.base_answers import BaseAnswers, BaseAsked, read_base_answers
from dist_moe.evaluation.rows import Outcome
from dist_moe.evaluation.score import Scorable
from dist_moe.files import writing
from dist_moe.judges import Judge
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.workflows.evaluated import Evaluated
from dist_moe.workflows.inputs import TokenRows


def base_asked(
    evaluated: Evaluated,
    rows: TokenRows,
    asked: Sequence[Scorable],
    judges: Sequence[Judge],
    hashes: Mapping[Path, str],
) -> BaseAsked | None:
    """What the answers of the model before depend on; None: there is none."""
    if evaluated.before is None:
        return None
    settings = evaluated.config.evaluation
    return BaseAsked(
        model_hash=hashes[evaluated.before],
        dtype=evaluated.config.model.dtype,
        data_hash=rows.prompts.data_hash,
        tokens_hash=tokens_hash(encoded for each in asked for encoded in (each.row, *each.openings)),
        end_ids=list(rows.end_ids),
        judges=json.loads(json.dumps([judge.facts for judge in judges])),
        max_new_tokens=settings.max_new_tokens,
        micro_batch_tokens=settings.micro_batch_tokens,
        ep_size=settings.ep_size,
        packed=evaluated.config.data.packing,
    )


@dataclass(frozen=True, slots=True)
class KeptBase:
    path: Path | None
    """The file. None: nothing is kept."""
    asked: BaseAsked | None
    is_known: bool
    """The same on all ranks."""
    outcomes: list[Outcome] | None
    """What is known, on the first rank."""

    @classmethod
    def read(cls, path: Path | None, asked: BaseAsked | None, num_rows: int, comm: Comm) -> KeptBase:
        """By the first rank, for all.

        Raises:
            UserError: on all ranks: the file is damaged.
        """
        outcomes = None
        with together(comm):
            if path is not None and asked is not None and comm.rank == 0:
                outcomes = read_base_answers(path, asked, num_rows)
        return cls(path, asked, comm.gather(outcomes is not None)[0], outcomes)

    def completed(self, outcomes: Mapping[str, list[Outcome]]) -> Mapping[str, list[Outcome]]:
        """With what the model before has said; kept from now on if it was asked. Called by the first rank."""
        if self.outcomes is not None:
            return {"before": self.outcomes, **outcomes}
        if self.path is not None and self.asked is not None:
            answers = BaseAnswers(asked=self.asked, outcomes=outcomes["before"])
            if answers.are_whole:
                with writing(self.path):
                    answers.write(self.path)
        return outcomes
