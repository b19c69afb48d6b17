"""Before and after of a run, or a model by itself: what `dist-moe evaluate` and launch/evaluate.py run, in order."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from dist_moe.data.rows import Prompt
from dist_moe.errors import UserError
from dist_moe.evaluation.curve import ALPHAS, CHOSEN_ON, Curve
from dist_moe.evaluation.harness import Tasks
from dist_moe.evaluation.places import Place
from dist_moe.evaluation.record import Evaluation
from dist_moe.evaluation.score import RowScore, Scorable, Subject, score_rows
from dist_moe.judges import Judge
from dist_moe.parallel.alone import alone
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.mesh import Mesh
from dist_moe.progress import progress
from dist_moe.report.curve import curve_lines
from dist_moe.report.evaluation import evaluation_lines
from dist_moe.report.model import forward_passes
from dist_moe.weights.identity import shared_model_hash
from dist_moe.workflows.answers import require_finite, scorable
from dist_moe.workflows.base_answers import KeptBase, base_asked
from dist_moe.workflows.conclude import conclude, find_places, outcomes_of
from dist_moe.workflows.evaluated import Evaluated, is_run, read_evaluated, require_place
from dist_moe.workflows.evaluation_request import EvaluationRequest
from dist_moe.workflows.harness import measure, require_tasks
from dist_moe.workflows.inputs import TokenRows, read_token_rows
from dist_moe.workflows.judges import chosen_judges
from dist_moe.workflows.model_place import from_hub, placed
from dist_moe.workflows.passes import require_passes
from dist_moe.workflows.run_lock import run_lock

log = logging.getLogger(__name__)


def evaluate(request: EvaluationRequest, comm: Comm) -> Path:
    """Score rows with a run's base model and its trained experts, or with a model, always without a mask.

    Every rank of `comm` takes a part of the rows; the first one judges the answers, and writes.

    Returns:
        The directory of the results; with `alphas`, of those: see `dist_moe.evaluation.curve`.

    Raises:
        UserError: on all ranks: something is missing or wrong, or cannot be combined.
    """
    with together(comm):
        request.check()
    request = replace(request, path=placed(request.path, "MODEL_OR_RUN", comm))
    if request.against is not None:
        request = replace(request, against=placed(request.against, "--against", comm))
    with together(comm):
        a_run = is_run(request.path)
    with ExitStack() as stack:
        if a_run:
            stack.enter_context(run_lock(request.path, comm))  # what is written is of the experts that are there then
        with together(comm) as same:
            evaluated = read_evaluated(request, every_byte=comm.rank == 0)
            judges = chosen_judges(evaluated.config)
            if comm.rank == 0:
                require_place(evaluated.out, is_run=evaluated.out == request.path and a_run)
            if request.tasks is not None:
                require_tasks(request.tasks, evaluated)
            if evaluated.silence is not None:
                same["the silenced experts"] = evaluated.silence.facts
            if evaluated.run is not None:
                same["the trained experts' digest"] = evaluated.run.experts.digest
        _evaluate(evaluated, judges, request, comm)
        return evaluated.out


def _evaluate(evaluated: Evaluated, judges: Sequence[Judge], request: EvaluationRequest, comm: Comm) -> None:
    comm.heartbeat.limit_s = evaluated.config.parallel.timeout
    evaluated = replace(evaluated, config=from_hub(evaluated.config, comm))
    config = evaluated.config
    with together(comm) as same:
        rows = read_token_rows(config)
        if not rows.prompts.prompts:
            raise UserError(f"{', '.join(map(str, config.data.paths))}: there is no row to evaluate")
        same |= rows.facts
        require_passes(config, comm.device)
        evaluated.require_rows_fit(rows)
        texts = list(dict.fromkeys([config.data.refusal, *(text for judge in judges for text in judge.openings)]))
        asked = scorable(rows, texts)
        placed = find_places(evaluated, rows) if comm.rank == 0 else None
        if placed is not None and request.max_over_refusal is not None:
            _require_choice(placed.places.places, rows.prompts.prompts)
    mesh = Mesh.of(comm, config.evaluation.ep_size, "evaluation.ep_size")
    models = dict.fromkeys(path for path in (config.model.path, evaluated.before) if path is not None)
    hashes = {path: shared_model_hash(path, comm, rehash=config.rehash) for path in models}
    kept = KeptBase.read(request.base_answers, base_asked(evaluated, rows, asked, judges, hashes), len(asked), comm)
    with together(comm):
        evaluated.require_model(hashes[config.model.path])
        model, subjects = evaluated.load(mesh)
    for line in forward_passes(model):
        log.info(line)
    scores = _score(evaluated, rows, asked, subjects, comm, known=("before",) if kept.is_known else ())
    with together(comm):
        require_finite(rows.prompts.prompts, scores)

    def judge() -> None:
        assert placed is not None
        outcomes = kept.completed(outcomes_of(rows, texts, scores, judges))
        found = conclude(evaluated, rows, placed, outcomes, scores, judges, hashes)
        if request.tasks is not None:  # what has been found is on disk by now, should the harness fail
            found = [_with_capabilities(found, evaluated, request.tasks, chat=bool(rows.tokenizer.chat_template))]
        for line in _lines(evaluated, found, request.max_over_refusal):
            log.info(line)

    alone(comm, judge)


def _with_capabilities(found: Sequence[Evaluation], evaluated: Evaluated, tasks: Tasks, *, chat: bool) -> Evaluation:
    """The one evaluation with what lm-evaluation-harness measures, written again."""
    (one,) = found
    whole = replace(one, capabilities=measure(evaluated, tasks, chat=chat))
    whole.write(evaluated.out)
    return whole


def _score(
    evaluated: Evaluated,
    rows: TokenRows,
    asked: Sequence[Scorable],
    subjects: Mapping[str, Subject],
    comm: Comm,
    known: Sequence[str],
) -> list[RowScore]:
    settings = evaluated.config.evaluation
    with progress("Scoring", len(asked), "rows", quiet=comm.rank != 0) as advance:
        return score_rows(
            subjects,
            asked,
            max_new_tokens=settings.max_new_tokens,
            micro_batch_tokens=settings.micro_batch_tokens,
            pad_id=rows.pad_id,
            eos_ids=rows.end_ids,
            comm=comm,
            progress=advance,
            known=known,
        )


def _require_choice(places: Sequence[Place], prompts: Sequence[Prompt]) -> None:
    """Refuse rows on which no alpha can be chosen."""
    if not any(place.kind == CHOSEN_ON and not prompt.unsafe for place, prompt in zip(places, prompts, strict=True)):
        raise UserError(
            "--max-over-refusal: an alpha is chosen on safe rows that were not trained and are not like a trained one; "
            "none of these is: give others with --data, a part of your rows that is kept for this choice"
        )


def _lines(evaluated: Evaluated, found: Sequence[Evaluation], max_over_refusal: float | None) -> Iterator[str]:
    """What was found, for the console."""
    if evaluated.alphas:
        yield from curve_lines(Curve(dict(zip(evaluated.alphas, found, strict=True))), max_over_refusal)
        yield f"Evaluations: {evaluated.out / ALPHAS}"
    else:
        yield from evaluation_lines(found[0])
        yield f"Evaluation: {evaluated.out}"
