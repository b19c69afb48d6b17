"""Before and after of a run, or a model by itself: what `dist-moe evaluate` and launch/evaluate.py run, in order."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dist_moe.config.judges import chosen_judges
from dist_moe.data.batches import UNCATEGORISED
from dist_moe.data.rows import Prompt
from dist_moe.errors import UserError
from dist_moe.evaluation.groups import groups_of
from dist_moe.evaluation.measures import Resampling
from dist_moe.evaluation.places import Places, place_rows
from dist_moe.evaluation.record import Evaluation, EvaluationFacts, Judged, disagreements_of
from dist_moe.evaluation.rows import EvaluatedRow, Outcome
from dist_moe.evaluation.score import Reply, RowScore, Scorable, Subject, opening, score_rows
from dist_moe.judges import Answered, Judge, Judgement
from dist_moe.parallel.alone import alone
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.mesh import Mesh
from dist_moe.report.evaluation import evaluation_lines
from dist_moe.stats.design import text_key
from dist_moe.weights.identity import shared_model_hash
from dist_moe.workflows.evaluated import Evaluated, is_run, read_evaluated, require_place
from dist_moe.workflows.inputs import TokenRows, read_token_rows
from dist_moe.workflows.run_lock import run_lock
from dist_moe.workflows.trained_run import result_settings

log = logging.getLogger(__name__)


def evaluate(
    path: Path,
    data: Sequence[Path],
    comm: Comm,
    *,
    against: Path | None = None,
    out: Path | None = None,
    ep_size: int | None = None,
    settings: Sequence[str] = (),
) -> Path:
    """Score rows with a run's base model and its trained experts, or with a model, always without a mask.

    Every rank of `comm` takes a part of the rows; the first one judges the answers, and writes.

    Args:
        path: a run, or a model's directory.
        data: files of rows; none: those that the run was trained on.
        comm: all ranks.
        against: a model to compare a model with.
        out: directory of the results; None: the run's, or `evaluation-NAME` of a model.
        ep_size: ranks that share experts; None: as `evaluation.ep_size` says.
        settings: words of a command line, `--evaluation.max_new_tokens 64`.

    Returns:
        The directory of the results.
    """
    with together(comm):
        a_run = is_run(path)
    with ExitStack() as stack:
        if a_run:
            stack.enter_context(run_lock(path, comm))  # what is written is of the experts that are there then
        with together(comm) as same:
            evaluated = read_evaluated(
                path, data, against=against, out=out, settings=settings, every_byte=comm.rank == 0
            )
            config = evaluated.config
            config.evaluation.ep_size = ep_size or config.evaluation.ep_size
            judges = chosen_judges(config)
            if comm.rank == 0:
                require_place(evaluated.out, is_run=evaluated.out == path and a_run)
            if evaluated.run is not None:
                same["the trained experts' digest"] = evaluated.run.experts.digest
        _evaluate(evaluated, judges, comm)
        return evaluated.out


def _evaluate(evaluated: Evaluated, judges: Sequence[Judge], comm: Comm) -> None:
    config = evaluated.config
    with together(comm) as same:
        rows = read_token_rows(config)
        if not rows.prompts.prompts:
            raise UserError(f"{', '.join(map(str, config.data.paths))}: there is no row to evaluate")
        same |= rows.facts
        evaluated.require_rows_fit(rows)
        texts = list(dict.fromkeys([config.data.refusal, *(text for judge in judges for text in judge.openings)]))
        scorable = _scorable(rows, texts)
    mesh = Mesh.of(comm, config.evaluation.ep_size, "evaluation.ep_size")
    models = dict.fromkeys(path for path in (config.model.path, evaluated.before) if path is not None)
    hashes = {path: shared_model_hash(path, comm, rehash=config.rehash) for path in models}
    with together(comm):
        evaluated.require_model(hashes[config.model.path])
        model, subjects = evaluated.load(mesh)
    for line in model.describe():
        log.info(line)
    scores = _score(evaluated, rows, scorable, subjects, comm)
    with together(comm):
        _require_finite(rows.prompts.prompts, scores)
    alone(comm, lambda: _conclude(evaluated, rows, texts, scores, judges, hashes))


def _scorable(rows: TokenRows, texts: Sequence[str]) -> list[Scorable]:
    """Each row, and its prompt with each text as the beginning of the answer."""
    ends = {*rows.tokenizer.all_special_ids, *rows.end_ids}
    prompts = rows.prompts.prompts
    of_texts = [
        rows.encode([replace(each, response=text, span=None, rejected=None) for each in prompts]).rows for text in texts
    ]
    return [
        Scorable(row, tuple(opening(each, ends) for each in openings))
        for row, *openings in zip(rows.encoded.rows, *of_texts, strict=True)
    ]


def _score(
    evaluated: Evaluated, rows: TokenRows, scorable: Sequence[Scorable], subjects: Mapping[str, Subject], comm: Comm
) -> list[RowScore]:
    settings = evaluated.config.evaluation
    quiet = comm.rank != 0 or not log.isEnabledFor(logging.INFO)
    with tqdm(total=len(scorable), desc="Scoring", unit="row", disable=quiet) as bar:
        return score_rows(
            subjects,
            scorable,
            max_new_tokens=settings.max_new_tokens,
            micro_batch_tokens=settings.micro_batch_tokens,
            pad_id=rows.pad_id,
            eos_ids=rows.end_ids,
            comm=comm,
            progress=bar.update,
        )


def _require_finite(prompts: Sequence[Prompt], scores: Sequence[RowScore]) -> None:
    """Refuse what no table can show: a model whose numbers overflow."""
    for prompt, score in zip(prompts, scores, strict=True):
        for when, reply in score.replies.items():
            numbers = [reply.loss_sum, *reply.opening_log_p, score.kl_sum or 0.0]
            if not all(map(math.isfinite, numbers)):
                raise UserError(
                    f"{prompt.source}: the model {when} gives NaN or infinite log-probabilities for this row: try "
                    "model.dtype float32, or look at its weights"
                )


def _conclude(
    evaluated: Evaluated,
    rows: TokenRows,
    texts: Sequence[str],
    scores: Sequence[RowScore],
    judges: Sequence[Judge],
    hashes: Mapping[Path, str],
) -> None:
    """Judge the answers, find the rows' places, show the tables, and write all down."""
    config, names = evaluated.config, [judge.name for judge in judges]
    trained = evaluated.trained_prompts()
    known = None if isinstance(trained, str) else trained
    places = place_rows(rows.prompts.prompts, known, config.evaluation.near_equal)
    outcomes = {when: _outcomes(rows, texts, [score.replies[when] for score in scores], judges)
                for when in scores[0].replies}  # fmt: skip
    of_rows = _evaluated_rows(rows, scores, places, outcomes)
    before = evaluated.before
    facts = EvaluationFacts(
        model_name=config.model.path.resolve().name,
        model_hash=hashes[config.model.path],
        against_name=None if before is None else before.resolve().name,
        against_hash=None if before is None else hashes[before],
        experts_digest=None if evaluated.run is None else evaluated.run.experts.digest,
        tokenizer_hash=rows.tokenizer_hash,
        data_hash=rows.prompts.data_hash,
        files=sorted({row.file for row in of_rows}),
        num_rows=len(of_rows),
        unknown=trained if isinstance(trained, str) else None,
        num_not_compared=places.num_not_compared,
        judges=[Judged(facts=_json(judge.facts), in_words=judge.in_words) for judge in judges],
        seed=config.seed,
        settings=_json(_settings(evaluated)),
    )
    evaluation = Evaluation(
        facts=facts,
        groups=groups_of(of_rows, names, Resampling(config.evaluation.resamples, config.seed)),
        disagreements=disagreements_of(of_rows, names),
        rows=of_rows,
    )
    evaluation.write(evaluated.out)
    for line in evaluation_lines(evaluation):
        log.info(line)
    log.info(f"Evaluation: {evaluated.out}")


def _settings(evaluated: Evaluated) -> dict[str, Any]:
    """What the numbers follow from beside the hashes; of a model's directory no training."""
    settings, own = result_settings(evaluated.config), asdict(evaluated.config.evaluation)
    if evaluated.run is None:
        settings = {key: value for key, value in settings.items() if key.startswith(("model.", "data."))}
    return settings | {f"evaluation.{key}": value for key, value in own.items() if key != "judge"}


def _outcomes(
    rows: TokenRows, texts: Sequence[str], replies: Sequence[Reply], judges: Sequence[Judge]
) -> list[Outcome]:
    """What one model has said to each row, judged."""

    def decoded(ids: Sequence[int]) -> str:
        return str(rows.tokenizer.decode(list(ids), skip_special_tokens=False))

    ended = [bool(reply.ids) and reply.ids[-1] in rows.end_ids for reply in replies]
    answers = [
        Answered(
            row_id=prompt.id,
            messages=tuple({"role": message.role, "content": message.content} for message in prompt.messages),
            unsafe=prompt.unsafe,
            text=decoded(reply.ids),
            asked=decoded(row.inference_ids),
            is_cut=not has_ended,
            opening_log_p=dict(zip(texts, reply.opening_log_p, strict=True)),
        )
        for prompt, row, reply, has_ended in zip(rows.prompts.prompts, rows.encoded.rows, replies, ended, strict=True)
    ]
    said: dict[str, list[Judgement]] = {judge.name: judge.judge(answers) for judge in judges}
    assert all(len(each) == len(answers) for each in said.values())
    return [
        Outcome(
            loss_sum=reply.loss_sum,
            refusal_log_p=reply.opening_log_p[0],
            answer=answer.text,
            num_tokens=len(reply.ids) - has_ended,
            ended=has_ended,
            judgements={name: each[number] for name, each in said.items()},
        )
        for number, (reply, answer, has_ended) in enumerate(zip(replies, answers, ended, strict=True))
    ]


def _evaluated_rows(
    rows: TokenRows, scores: Sequence[RowScore], places: Places, outcomes: Mapping[str, Sequence[Outcome]]
) -> tuple[EvaluatedRow, ...]:
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
                kl_sum=None if prompt.unsafe else score.kl_sum,
                before=outcomes["before"][number] if "before" in outcomes else None,
                after=outcomes["after"][number],
            )
        )
    return tuple(found)


def _json(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives them back; a path is its text."""
    found: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return found
