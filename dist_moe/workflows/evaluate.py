"""Before and after of a run, or a model by itself: what `dist-moe evaluate` and launch/evaluate.py run, in order."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from dist_moe.config.judges import chosen_judges
from dist_moe.config.schema import EvaluationConfig
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
from dist_moe.report.curve import curve_lines
from dist_moe.report.evaluation import evaluation_lines
from dist_moe.report.model import forward_passes
from dist_moe.weights.identity import shared_model_hash
from dist_moe.workflows.answers import require_finite, scorable
from dist_moe.workflows.conclude import conclude, find_places, outcomes_of
from dist_moe.workflows.evaluated import Evaluated, is_run, read_evaluated, require_place
from dist_moe.workflows.harness import measure, require_tasks
from dist_moe.workflows.inputs import TokenRows, read_token_rows
from dist_moe.workflows.run_lock import run_lock
from dist_moe.workflows.silence import read_silence

log = logging.getLogger(__name__)


def evaluate(
    path: Path,
    data: Sequence[Path],
    comm: Comm,
    *,
    against: Path | None = None,
    out: Path | None = None,
    ep_size: int | None = None,
    alphas: Sequence[float] = (),
    max_over_refusal: float | None = None,
    silence: str | None = None,
    batches: Sequence[int] = (),
    tasks: Tasks | None = None,
    settings: Sequence[str] = (),
    section: EvaluationConfig | None = None,
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
        alphas: of a run: shares of the trained experts' change, above 0 and up to 1, each of which is evaluated as its
            export would be; none: the trained experts as they are.
        max_over_refusal: say which of them is the largest at which so many safe prompts are refused at most.
        silence: a mask store: compare a model with itself without the experts of these masks.
        batches: of these batches only; none: of all.
        tasks: what lm-evaluation-harness measures beside, with the model that it loads itself.
        settings: words of a command line, `--evaluation.max_new_tokens 64`.
        section: all settings of `evaluation`, instead of those that a run was trained with.

    Returns:
        The directory of the results; with `alphas`, of those: see `dist_moe.evaluation.curve`.
    """
    with together(comm):
        if max_over_refusal is not None and not alphas:
            raise UserError("--max-over-refusal chooses one of several alphas: give --alphas, such as 0.3,0.5,1")
        if batches and silence is None:
            raise UserError("--batches says whose experts are silenced: give --silence STORE")
        a_run = is_run(path)
    with ExitStack() as stack:
        if a_run:
            stack.enter_context(run_lock(path, comm))  # what is written is of the experts that are there then
        with together(comm) as same:
            evaluated = read_evaluated(
                path,
                data,
                against=against,
                out=out,
                settings=settings,
                every_byte=comm.rank == 0,
                alphas=alphas,
                silence=None if silence is None else read_silence(silence, batches),
            )
            config = evaluated.config
            config.evaluation = replace(section or config.evaluation)
            config.evaluation.ep_size = ep_size or config.evaluation.ep_size
            judges = chosen_judges(config)
            if comm.rank == 0:
                require_place(evaluated.out, is_run=evaluated.out == path and a_run)
            if tasks is not None:
                require_tasks(tasks, evaluated)
            if evaluated.silence is not None:
                same["the silenced experts"] = evaluated.silence.facts
            if evaluated.run is not None:
                same["the trained experts' digest"] = evaluated.run.experts.digest
        _evaluate(evaluated, judges, comm, max_over_refusal, tasks)
        return evaluated.out


def _evaluate(
    evaluated: Evaluated,
    judges: Sequence[Judge],
    comm: Comm,
    max_over_refusal: float | None,
    tasks: Tasks | None,
) -> None:
    config = evaluated.config
    with together(comm) as same:
        rows = read_token_rows(config)
        if not rows.prompts.prompts:
            raise UserError(f"{', '.join(map(str, config.data.paths))}: there is no row to evaluate")
        same |= rows.facts
        evaluated.require_rows_fit(rows)
        texts = list(dict.fromkeys([config.data.refusal, *(text for judge in judges for text in judge.openings)]))
        asked = scorable(rows, texts)
        placed = find_places(evaluated, rows) if comm.rank == 0 else None
        if placed is not None and max_over_refusal is not None:
            _require_choice(placed.places.places, rows.prompts.prompts)
    mesh = Mesh.of(comm, config.evaluation.ep_size, "evaluation.ep_size")
    models = dict.fromkeys(path for path in (config.model.path, evaluated.before) if path is not None)
    hashes = {path: shared_model_hash(path, comm, rehash=config.rehash) for path in models}
    with together(comm):
        evaluated.require_model(hashes[config.model.path])
        model, subjects = evaluated.load(mesh)
    for line in forward_passes(model):
        log.info(line)
    scores = _score(evaluated, rows, asked, subjects, comm)
    with together(comm):
        require_finite(rows.prompts.prompts, scores)

    def judge() -> None:
        assert placed is not None
        found = conclude(evaluated, rows, placed, outcomes_of(rows, texts, scores, judges), scores, judges, hashes)
        if tasks is not None:  # what has been found is on disk by now, should the harness fail
            measured = measure(evaluated, tasks, chat=bool(rows.tokenizer.chat_template))
            found = [replace(each, capabilities=measured) for each in found]
            found[0].write(evaluated.out)
        for line in _lines(evaluated, found, max_over_refusal):
            log.info(line)

    alone(comm, judge)


def _score(
    evaluated: Evaluated, rows: TokenRows, asked: Sequence[Scorable], subjects: Mapping[str, Subject], comm: Comm
) -> list[RowScore]:
    settings = evaluated.config.evaluation
    quiet = comm.rank != 0 or not log.isEnabledFor(logging.INFO)
    with tqdm(total=len(asked), desc="Scoring", unit="row", disable=quiet) as bar:
        return score_rows(
            subjects,
            asked,
            max_new_tokens=settings.max_new_tokens,
            micro_batch_tokens=settings.micro_batch_tokens,
            pad_id=rows.pad_id,
            eos_ids=rows.end_ids,
            comm=comm,
            progress=bar.update,
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
