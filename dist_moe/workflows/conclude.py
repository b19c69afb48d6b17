"""From what models have said to rows to evaluations on disk: where each row belongs, what judges say, the tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dist_moe.data.batches import UNCATEGORISED
from dist_moe.evaluation.groups import groups_of
from dist_moe.evaluation.measures import Resampling
from dist_moe.evaluation.places import Places, place_rows
from dist_moe.evaluation.record import Evaluation, EvaluationFacts, Judged, disagreements_of
from dist_moe.evaluation.rows import EvaluatedRow, Outcome
from dist_moe.evaluation.score import Reply, RowScore
from dist_moe.hub.names import model_name
from dist_moe.judges import Judge, Judgement
from dist_moe.stats.design import text_key
from dist_moe.workflows.answers import answered
from dist_moe.workflows.evaluated import Evaluated
from dist_moe.workflows.inputs import TokenRows
from dist_moe.workflows.trained_run import result_settings


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the rows belong."""

    places: Places
    unknown: str | None
    """Why the trained rows are not known."""


def find_places(evaluated: Evaluated, rows: TokenRows) -> Placed:
    trained = evaluated.trained_prompts()
    known = None if isinstance(trained, str) else trained
    places = place_rows(rows.prompts.prompts, known, evaluated.config.evaluation.near_equal)
    return Placed(places, trained if isinstance(trained, str) else None)


def conclude(
    evaluated: Evaluated,
    rows: TokenRows,
    placed: Placed,
    outcomes: Mapping[str, Sequence[Outcome]],
    scores: Sequence[RowScore],
    judges: Sequence[Judge],
    hashes: Mapping[Path, str],
) -> list[Evaluation]:
    """Write an evaluation of each of `evaluated.afters`."""
    config, names = evaluated.config, [judge.name for judge in judges]
    facts = _facts(evaluated, rows, placed, judges, hashes)
    found = []
    for after in evaluated.afters:
        of_rows = _evaluated_rows(rows, scores, placed.places, outcomes, after.name)
        evaluation = Evaluation(
            facts=replace(facts, alpha=after.alpha),
            groups=groups_of(of_rows, names, Resampling(config.evaluation.resamples, config.seed)),
            disagreements=disagreements_of(of_rows, names),
            rows=of_rows,
        )
        evaluation.write(after.place)
        found.append(evaluation)
    return found


def _facts(
    evaluated: Evaluated, rows: TokenRows, placed: Placed, judges: Sequence[Judge], hashes: Mapping[Path, str]
) -> EvaluationFacts:
    config, before = evaluated.config, evaluated.before
    return EvaluationFacts(
        model_name=model_name(config.model.path),
        model_hash=hashes[config.model.path],
        against_name=None if before is None else model_name(before),
        against_hash=None if before is None else hashes[before],
        experts_digest=None if evaluated.run is None else evaluated.run.experts.digest,
        tokenizer_hash=rows.tokenizer_hash,
        data_hash=rows.prompts.data_hash,
        files=sorted({prompt.source.rpartition(":")[0] for prompt in rows.prompts.prompts}),
        num_rows=len(rows.prompts.prompts),
        unknown=placed.unknown,
        num_not_compared=placed.places.num_not_compared,
        judges=[Judged(facts=_json(judge.facts), in_words=judge.in_words) for judge in judges],
        seed=config.seed,
        settings=_json(_settings(evaluated)),
        silenced=None if evaluated.silence is None else evaluated.silence.facts,
    )


def _settings(evaluated: Evaluated) -> dict[str, Any]:
    """What the numbers follow from beside the hashes; of a model's directory no training."""
    settings, own = result_settings(evaluated.config), asdict(evaluated.config.evaluation)
    if evaluated.run is None:
        settings = {key: value for key, value in settings.items() if key.startswith(("model.", "data."))}
    return settings | {f"evaluation.{key}": value for key, value in own.items() if key != "judge"}


def outcomes_of(
    rows: TokenRows, texts: Sequence[str], scores: Sequence[RowScore], judges: Sequence[Judge]
) -> dict[str, list[Outcome]]:
    """What each model has said to each row, judged."""
    return {
        when: _outcomes(rows, texts, [score.replies[when] for score in scores], judges) for when in scores[0].replies
    }


def _outcomes(
    rows: TokenRows, texts: Sequence[str], replies: Sequence[Reply], judges: Sequence[Judge]
) -> list[Outcome]:
    """What one model has said to each row, judged."""
    answers = answered(rows, texts, replies)
    said: dict[str, list[Judgement]] = {judge.name: judge.judge(answers) for judge in judges}
    assert all(len(each) == len(answers) for each in said.values())
    return [
        Outcome(
            loss_sum=reply.loss_sum,
            refusal_log_p=reply.opening_log_p[0],
            answer=answer.text,
            num_tokens=len(reply.ids) - (not answer.is_cut),
            ended=not answer.is_cut,
            judgements={name: each[number] for name, each in said.items()},
        )
        for number, (reply, answer) in enumerate(zip(replies, answers, strict=True))
    ]


def _evaluated_rows(
    rows: TokenRows,
    scores: Sequence[RowScore],
    places: Places,
    outcomes: Mapping[str, Sequence[Outcome]],
    after: str,
) -> tuple[EvaluatedRow, ...]:
    """The rows with what the model `after` says, and the one before, if there is one."""
    found = []
    for number, (prompt, score, place) in enumerate(zip(rows.prompts.prompts, scores, places.places, strict=True)):
        file, _, line = prompt.source.rpartition(":")
        found.append(
            EvaluatedRow(
                id=prompt.id,
                file=file,
                place=line,
                label="unsafe" if prompt.unsafe else "safe",
                category=prompt.category or UNCATEGORISED,
                prompt=f"{text_key(prompt.question):016x}",
                pair_id=prompt.pair_id,
                kind=place.kind,
                batch=place.batch,
                like=place.like,
                num_loss_tokens=score.num_loss_tokens,
                kl_sum=None if prompt.unsafe else score.kl_sums.get(after),
                before=outcomes["before"][number] if "before" in outcomes else None,
                after=outcomes[after][number],
            )
        )
    return tuple(found)


def _json(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back; a path is its text."""
    found: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return found
