"""The Python interface: each stage as a function that returns a value. `import dist_moe` offers all of them.

    config = dist_moe.load_config("run.yaml")
    masks = dist_moe.analyze(config)
    trained = dist_moe.train(config)
    print(trained.metrics[["step", "loss"]])
    dist_moe.export(trained.path, "repaired")
    assert dist_moe.verify(config.model.path, "repaired", config.run_dir / "masks.zarr").holds

Wrong input raises `UserError`. Nothing is printed: what the commands print is logged with Python's `logging`, under the
name `dist_moe`, at level INFO. In a process that a launcher (torchrun, deepspeed) has started, `count`, `analyze`,
`train`, `evaluate`, `evaluate_alphas` and `compare` do one rank's part of the work, as launch/*.py do: call them once
in each process, with the same arguments.

Torch is imported only by functions that need it, so `select` and functions that read a store work without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from dist_moe.config import Config, load_config
from dist_moe.errors import UserError
from dist_moe.evaluation.curve import Curve, read_curve
from dist_moe.evaluation.groups import By
from dist_moe.evaluation.harness import Tasks
from dist_moe.evaluation.record import Evaluation, read_evaluation
from dist_moe.evaluation.rows import Kind
from dist_moe.ranges import Trains
from dist_moe.report.curve import curve_frame
from dist_moe.report.evaluation import estimates_frame, rows_frame, table_frame
from dist_moe.selection.stored import open_masks
from dist_moe.store import Counts, MaskStore
from dist_moe.workflows.run_dir import RunDir
from dist_moe.workflows.select import select as select_masks

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from dist_moe.evaluation.comparison import Comparison
    from dist_moe.selection.structure import OlderStructure
    from dist_moe.weights.facts import Facts, RunFacts
    from dist_moe.weights.moved import Difference
    from dist_moe.weights.verify import Verification


@dataclass(frozen=True, slots=True)
class Trained:
    """A run whose training has finished."""

    path: Path
    """The run directory."""
    union: tuple[tuple[int, int], ...]
    """(layer, expert) of each expert that at least one batch trains, sorted."""
    facts: RunFacts
    """Facts about the training: model, data, masks, settings."""

    @property
    def metrics(self) -> pd.DataFrame:
        """One row for each step: step, epoch, batch, loss (the objective), grad_norm, and more; see docs/formats.md."""
        return pd.read_json(RunDir(self.path).metrics, lines=True)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What an evaluation has found. The page on evaluation says what each number means."""

    path: Path
    """Directory of evaluation.json and answers.jsonl, which have it all."""
    evaluation: Evaluation
    """As values: `facts`, `groups` with every estimate and its interval, and `rows`, one record a row."""

    @property
    def kinds(self) -> list[Kind]:
        """Kinds of rows that there are, such as "held out" and "trained"; they are in no table together."""
        return self.evaluation.kinds

    @property
    def estimates(self) -> pd.DataFrame:
        """Every number, a line each: kind, by, group, measure, when, value, low, high, num_rows, num_prompts, p_value.

        `low` and `high` are the ends of 95 % intervals, `p_value` is of changes of refusal rates.
        """
        return estimates_frame(self.evaluation)

    @property
    def rows(self) -> pd.DataFrame:
        """One line a row: id, file, label, category, batch, kind, ..., `before.answer`, `after.answer`, and for each
        judge its verdict and reason, such as `after.judgements.phrases.verdict`."""
        return rows_frame(self.evaluation.rows)

    def table(self, by: By = "all", kind: Kind | None = None) -> pd.DataFrame:
        """The values of one table: a line for each batch, category or file, or for all rows.

        Columns are (measure, "before" | "after" | "change"): "refused (unsafe)" and "refused (safe)" are shares of
        rows, "refusal loss (unsafe)" and "answer loss (safe)" means per token in nats, and so on.

        Args:
            by: all, batch, category or file.
            kind: of rows; may be left out where there is one kind only.

        Raises:
            UserError: there are several kinds, or none of this name.
        """
        return table_frame(self.evaluation, by, kind)


@dataclass(frozen=True, slots=True)
class Alphas:
    """Evaluations of shares of a run's trained change: each as the export at its alpha would have it."""

    path: Path
    """Directory with an evaluation of each in `alphas`."""
    curve: Curve
    """As values: `evaluations`, by alpha, and `points`, every estimate with its interval."""

    def table(self, kind: Kind | None = None) -> pd.DataFrame:
        """The curve of one kind of rows: a line an alpha, 0 (the base) first.

        Columns are (measure, "value" | "low" | "high"); `low` and `high` are the ends of 95 % intervals.

        Args:
            kind: of rows; may be left out where there is one kind only.

        Raises:
            UserError: there are several kinds, or none of this name.
        """
        return curve_frame(self.curve, kind)

    def largest(self, max_over_refusal: float) -> float | None:
        """The largest alpha at which so many safe prompts, as a share, are refused at most: by the upper end of the
        interval, on rows that were not trained. None: at none. Report its numbers on other rows than these.

        Raises:
            UserError: no row is held out from the training.
        """
        return self.curve.largest(max_over_refusal)


@dataclass(frozen=True, slots=True)
class Exported:
    """A Hugging Face checkpoint, or a delta."""

    path: Path
    facts: Facts
    """Facts about the run that may be published; no paths of this machine."""


def count(config: Config | str | Path, *, routes: Sequence[str | Path] = ()) -> Counts:
    """Run the model on all prompts and count which experts their tokens are routed to. Selects no experts.

    Args:
        config: a configuration, or the path of its YAML file.
        routes: files of routes that a server has recorded; these are counted, and no model is run.

    Returns:
        The run's counts store: `prompt_counts` int [P, L, E] and `risk_diff` float [B, L, E], for P prompts in B
            batches, L
        MoE layers and E experts in each layer.

    Raises:
        UserError: the input is wrong, or a part of the counting is left to other jobs (`analysis.part`).

    Example:
        >>> dist_moe.count("run.yaml").risk_diff[0].max()
    """
    from dist_moe.parallel.launch import process_group
    from dist_moe.workflows import count as workflow

    config = _config(config)
    with process_group() as comm:
        if routes:
            from dist_moe.workflows.count_routes import count_routes

            count_routes(config, comm, [Path(file) for file in routes])
        else:
            workflow.count(config, comm)
    run = RunDir(config.run_dir)
    if not run.counts.exists():
        raise UserError(f"{run.path}: a part of the counting is left to other jobs: call it again when they are done")
    return Counts.open(run.counts)


def select(run: str | Path, rule: str | None = None, *, out: str = "masks", **parameters: object) -> MaskStore:
    """Select each batch's unsafe experts from a run's counts, and write them to the mask store `run`/`out`.zarr.

    Args:
        run: a run directory in which `count` or `analyze` has finished.
        rule: name of a selection rule; None: that of the run's configuration.
        out: name of the new mask store.
        **parameters: parameters of the rule; others are as in the run's configuration.

    Returns:
        The mask store: `masks` bool [B, L, E], for B batches, L MoE layers and E experts in each layer.

    Raises:
        UserError: there are no counts, the rule is wrong or selects nothing, or the mask store exists.

    Example:
        >>> dist_moe.select("runs/my-run", "lowest", out="lowest", threshold=0.1).union().sum()
    """
    words = {name: str(value) for name, value in parameters.items()}
    return select_masks(Path(run), words if rule is None else {"name": rule, **words}, out)


def analyze(config: Config | str | Path) -> MaskStore:
    """Find each batch's unsafe experts: `count`, then `select`.

    Args:
        config: a configuration, or the path of its YAML file.

    Returns:
        The run's mask store: `masks` bool [B, L, E], for B batches, L MoE layers and E experts in each layer.

    Raises:
        UserError: the input is wrong, or a part of the analysis is left to other jobs (`analysis.part`).

    Example:
        >>> store = dist_moe.analyze("run.yaml")
        >>> store.masks[0].sum()  # number of unsafe experts of the first batch
    """
    from dist_moe.parallel.launch import process_group
    from dist_moe.workflows import analyze as workflow

    config = _config(config)
    with process_group() as comm:
        workflow.analyze(config, comm)
    run = RunDir(config.run_dir)
    if run.analysis.exists() or not run.masks.exists():
        raise UserError(f"{run.path}: a part of the analysis is left to other jobs: call it again when they are done")
    return MaskStore.open(run.masks)


def train(config: Config | str | Path) -> Trained:
    """Train each batch's unsafe experts, and nothing else, with the masks that `analyze` or `select` has written.

    Args:
        config: a configuration, or the path of its YAML file.

    Returns:
        The finished run: its union of experts, facts about the training, and metrics with one row for each step.

    Raises:
        UserError: the input is wrong, or the run was asked to stop before its end.

    Example:
        >>> trained = dist_moe.train("run.yaml")
        >>> trained.metrics["loss"].iloc[-1]
    """
    from dist_moe.parallel.launch import process_group
    from dist_moe.workflows import train as workflow
    from dist_moe.workflows.trained_run import TrainedRun

    config = _config(config)
    with process_group() as comm:
        workflow.train(config, comm)
    unfinished = RunDir(config.run_dir).training if config.overwrite else None
    if (unfinished is not None and unfinished.exists()) or not RunDir(config.run_dir).experts.exists():
        raise UserError(
            f"{config.run_dir}: stopped before its end, as requested, with a checkpoint: call train again to resume"
        )
    facts = TrainedRun.open(config.run_dir).facts
    return Trained(config.run_dir, tuple(sorted(facts.union)), facts)


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

    words = [word for name, value in settings.items() for word in _words(f"--evaluation.{name}", value)]
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
    words = [word for name, value in settings.items() for word in _words(f"--evaluation.{name}", value)]
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


def compare(
    config: Config | str | Path,
    held_out: Sequence[str | Path],
    variants: Sequence[str],
    *,
    num_seeds: int = 3,
    lrs: Sequence[float] | None = None,
    validation: float = 0.2,
) -> Comparison:
    """Train variants of a run from several seeds, and evaluate all of them on the same held-out rows.

    Runs that an earlier call has finished are not repeated.

    Args:
        config: a configuration, or the path of its YAML file; its `run_dir` holds all runs of the comparison.
        held_out: files of rows to evaluate on. Rows that are trained, or nearly equal to trained ones, are left out.
        variants: each `RULE` or `RULE,train.SETTING=VALUE,...`; the first is the one the others are compared with. In a
            rule's place may stand `full` (full fine-tuning) or `router_only`.
        num_seeds: how many seeds, from the configuration's `seed` on.
        lrs: learning rates to choose from for each variant that does not name its own, by the loss on a part of the
            training rows. None: as configured.
        validation: share of the training rows for that.

    Returns:
        Means over seeds and prompts, and paired differences, each with a 95 % interval, by variant and measure.

    Raises:
        UserError: a variant or file is wrong, no row is held out, or `run_dir` has runs with other settings.

    Example:
        >>> found = dist_moe.compare("run.yaml", ["held-out.jsonl"], ["lowest", "lowest,train.mode=update"])
        >>> found.differences["lowest,mode=update"]["refused (unsafe)"].is_clear
    """
    from dist_moe.parallel.launch import process_group
    from dist_moe.workflows.compare import Rates
    from dist_moe.workflows.compare import compare as compare_runs

    rates = None if lrs is None else Rates(tuple(lrs), validation)
    with process_group() as comm:
        return compare_runs(_config(config), comm, [Path(file) for file in held_out], variants, num_seeds, rates)


def export(
    run: str | Path,
    out: str | Path,
    *,
    link: bool = False,
    delta: bool = False,
    alpha: float = 1.0,
    base_routers: bool = False,
) -> Exported:
    """Write a run's trained model to the new directory `out`, or with `delta` only its experts to the new file `out`.

    Args:
        run: a run directory in which training has finished.
        out: a path that does not exist.
        link: hard-link unchanged checkpoint shards instead of copying them; not with `delta`.
        delta: write only the trained experts, as one safetensors file, for `apply`.
        alpha: from 0 (the base) to 1 (the trained experts): what is exported is base + alpha * (trained - base),
            rounded once to the checkpoint's data type.
        base_routers: leave routers that were trained as they are in the base.

    Returns:
        The path, and facts about the run.

    Raises:
        UserError: training has not finished in `run`, its base model has changed, or `out` exists.

    Example:
        >>> dist_moe.export("runs/my-run", "repaired").facts.num_trained_experts
    """
    from dist_moe.workflows import export as workflow

    if link and delta:
        raise UserError("a delta has no shards to link: give link or delta")
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha: expected a number from 0 to 1, got {alpha}")
    if delta:
        facts = workflow.export_delta(Path(run), Path(out), alpha=alpha, base_routers=base_routers)
    else:
        facts = workflow.export(Path(run), Path(out), link=link, alpha=alpha, base_routers=base_routers)
    return Exported(Path(out), facts)


def apply(base: str | Path, delta: str | Path, out: str | Path) -> Exported:
    """Write to the new directory `out` what `export` would write for the run from which a delta comes.

    Args:
        base: directory of the model from which the run was trained.
        delta: file that `export` has written with `delta=True`.
        out: a path that does not exist.

    Returns:
        The path of the checkpoint, and the facts in the delta.

    Raises:
        UserError: an input cannot be read, the delta is for another base, or `out` exists.

    Example:
        >>> dist_moe.apply("base", "delta.safetensors", "repaired").path
    """
    from dist_moe.workflows import export as workflow

    return Exported(Path(out), workflow.apply(Path(base), Path(delta), Path(out)))


def difference(base: str | Path, model: str | Path) -> Difference:
    """Say which experts have moved between a base and a model that any trainer has made from it, and what else.

    The two may be stored in other shards, other data types, and with a layer's experts in one tensor or in many.

    Args:
        base: directory of the base model.
        model: directory of the fine-tuned model.

    Returns:
        `experts` that have moved, each with the size of its change; other `tensors`, with the part of the model that
        they belong to; tensors of other shapes or in one of the two only; other settings and files.

    Raises:
        UserError: an input cannot be read, or the two have other numbers of layers or experts.

    Example:
        >>> found = dist_moe.difference("base", "tuned")
        >>> {(moved.layer, moved.expert): moved.size.relative for moved in found.experts}
    """
    from dist_moe.workflows import export as workflow

    return workflow.difference(Path(base), Path(model))


def verify(base: str | Path, model: str | Path, *masks: str | Path, trains: Trains = "experts") -> Verification:
    """Compare an exported model with its base, byte by byte: only what the run was to train may differ, that is experts
    in the union of the masks, and routers or other dense weights if `trains` says so.

    Args:
        base: directory of the base model.
        model: directory of the exported model.
        *masks: mask store of the run, a directory or URL; all of them if the run had `train.revisions`.
        trains: the run's setting `train.trains`.

    Returns:
        What was compared, what has changed, and `violations`: every difference that should not be there. `holds` is
            True
        if there is none.

    Raises:
        UserError: an input cannot be read, the masks are for another base, or there are none.

    Example:
        >>> dist_moe.verify("base", "repaired", "runs/my-run/masks.zarr").violations
        []
    """
    from dist_moe.workflows import export as workflow

    if not masks:
        raise UserError("verify needs a mask store; dist_moe.difference says of any model what differs from its base")
    return workflow.verify(Path(base), Path(model), [str(each) for each in masks], trains)


def write_report(*runs: str | Path, out: str | Path | None = None, export: str | Path | None = None) -> Path:
    """Write one HTML page about runs and comparisons, that needs no network and no other file.

    Args:
        *runs: run directories, or directories of comparisons.
        out: the page; without, report.html in the first directory. An earlier page is replaced.
        export: what the first run was exported to; it is compared with its base, byte by byte.

    Returns:
        The place of the page.

    Raises:
        UserError: a directory has nothing to show, something in it is damaged, or `out` is another file.

    Example:
        >>> dist_moe.write_report("runs/my-run", export="repaired")
    """
    from dist_moe.workflows.report import report

    if not runs:
        raise UserError("no run to report: give the directory of one at least")
    places = [Path(run) for run in runs]
    return report(places, None if out is None else Path(out), None if export is None else Path(export))


def RoutingCallback(
    config: Config | str | Path, out: str | Path, *, steps: Sequence[int] = (), at_evaluation: bool = False
) -> TrainerCallback:
    """A callback for transformers' Trainer: it counts the routing of prompts in the middle of anybody's training.

    It writes `out`/step-000100/counts.zarr, from which `select` selects masks. The training is not changed, and on
    several ranks the counts are those of one.

    Args:
        config: a configuration, or the path of its YAML file: `data`, `batches` and `analysis` say what is counted. Of
            `model.path`, only config.json and the tokenizer are read.
        out: directory for the results.
        steps: count after these steps of the optimizer.
        at_evaluation: count at each evaluation, too.

    Returns:
        The callback, for `callbacks` of a Trainer.

    Raises:
        UserError: the configuration asks for generated answers or for gradients. In the training, on all ranks: the
            data is wrong, `out` has counts of the step, or the model has no experts that transformers' interface
            covers.

    Example:
        >>> counting = dist_moe.RoutingCallback("run.yaml", "routing", steps=[100])
        >>> Trainer(model, arguments, train_dataset=rows, callbacks=[counting]).train()
    """
    from dist_moe.workflows import routing_callback

    return routing_callback.RoutingCallback(config, out, steps=steps, at_evaluation=at_evaluation)


def older_structure(masks: MaskStore | str | Path) -> OlderStructure:
    """A mask store in the words of older scripts: `batch_unsafe_experts`, `batch_expert_masks`, `aggregated_risk_diff`
    and `global_unsafe_experts`. `dist-moe store export` writes the same as files.

    Args:
        masks: a mask store, or its path; the counts that it was selected from are beside it.

    Returns:
        An object with these four as attributes.

    Raises:
        UserError: there is no such store, or no counts.

    Example:
        >>> dist_moe.older_structure("runs/my-run/masks.zarr").batch_unsafe_experts[0]
    """
    from dist_moe.selection.structure import OlderStructure

    return OlderStructure.of(masks if isinstance(masks, MaskStore) else open_masks(masks))


def _config(config: Config | str | Path) -> Config:
    return config if isinstance(config, Config) else load_config(config)


def _words(key: str, value: object) -> list[str]:
    """A setting as on the command line."""
    return [key, *map(str, value)] if isinstance(value, list | tuple) else [key, str(value)]
