"""What a model answers, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dist_moe.api.arguments import evaluation_words
from dist_moe.api.values import Alphas, Evaluated
from dist_moe.errors import UserError
from dist_moe.evaluation.curve import read_curve
from dist_moe.evaluation.harness import Tasks
from dist_moe.evaluation.record import read_evaluation


def evaluate(
    path: str | Path,
    data: Sequence[str | Path] = (),
    *,
    against: str | Path | None = None,
    out: str | Path | None = None,
    silence: str | Path | None = None,
    batches: Sequence[int] = (),
    harness: Sequence[str] = (),
    harness_include: str | Path | None = None,
    harness_limit: int | None = None,
    **settings: object,
) -> Evaluated:
    """Score rows with a run's base model and with its trained experts, or with a model, without a mask.

    Args:
        path: a run directory in which training has ended, or a model's directory.
        data: files of rows; without, those that the run was trained on.
        against: a model's directory that is the "before" of another model; a run's before is its base model.
        out: directory of the results; without, the run's own, or `evaluation-NAME` for a model.
        silence: a mask store. A model is then compared with itself without the experts of these masks: no token is
            routed to them.
        batches: numbers of the batches whose masks are silenced; without, all.
        harness: tasks of lm-evaluation-harness, which is another program, to be run on the same models.
        harness_include: directory of further tasks.
        harness_limit: at most so many rows of each task, for trials.
        **settings: of the section `evaluation`, such as `max_new_tokens=64`.

    Returns:
        The tables, every estimate with its interval, and every row with its answers.

    Raises:
        UserError: there is no finished training in a run, a file is not what the experts were trained from, or a
            setting is wrong.

    Example:
        >>> dist_moe.evaluate("runs/my-run", ["held-out.jsonl"]).table("category", "held out")["refused (unsafe)"]
    """
    from dist_moe.parallel.launch import process_group
    from dist_moe.workflows import evaluate as workflow
    from dist_moe.workflows.evaluation_request import EvaluationRequest

    words = evaluation_words(settings)
    include = None if harness_include is None else Path(harness_include)
    with process_group() as comm:
        request = EvaluationRequest(
            path=Path(path),
            data=[Path(file) for file in data],
            against=None if against is None else Path(against),
            out=None if out is None else Path(out),
            silence=None if silence is None else str(silence),
            batches=batches,
            tasks=Tasks(names=tuple(harness), include=include, limit=harness_limit) if harness else None,
            settings=words,
        )
        place = workflow.evaluate(request, comm)
    return Evaluated(place, read_evaluation(place))


def evaluate_alphas(
    run: str | Path,
    alphas: Sequence[float],
    data: Sequence[str | Path] = (),
    *,
    out: str | Path | None = None,
    **settings: object,
) -> Alphas:
    """Score rows with shares of a run's trained change, without a mask and without another training.

    Args:
        run: a run directory in which training has ended.
        alphas: numbers above 0 and up to 1: experts are evaluated as base + alpha * (trained - base), to the bit what
            `export` writes at this alpha.
        data: files of rows; without, those that the run was trained on.
        out: directory of the results; without, the run's own.
        **settings: of the section `evaluation`.

    Returns:
        The curve: each measure by alpha, and an evaluation of each alpha with every answer.

    Raises:
        UserError: as `evaluate`; an alpha is out of range, or the model is in memory in a narrower type than its
            checkpoint's.

    Example:
        >>> found = dist_moe.evaluate_alphas("runs/my-run", [0.3, 0.5, 1], ["validation.jsonl"])
        >>> dist_moe.export("runs/my-run", "repaired", alpha=found.largest(max_over_refusal=0.05))
    """
    from dist_moe.parallel.launch import process_group
    from dist_moe.workflows import evaluate as workflow
    from dist_moe.workflows.evaluation_request import EvaluationRequest

    if not alphas or not all(0 < each <= 1 for each in alphas):
        raise UserError(f"alphas: expected numbers above 0 and up to 1, got {list(alphas)}")
    words = evaluation_words(settings)
    with process_group() as comm:
        request = EvaluationRequest(
            path=Path(run),
            data=[Path(file) for file in data],
            out=None if out is None else Path(out),
            alphas=alphas,
            settings=words,
        )
        place = workflow.evaluate(request, comm)
    return Alphas(place, read_curve(place, alphas))
