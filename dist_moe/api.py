"""The Python interface: each stage as a function that returns a value. `import dist_moe` offers all of them.

    config = dist_moe.load_config("run.yaml")
    masks = dist_moe.analyze(config)
    trained = dist_moe.train(config)
    print(trained.metrics[["step", "loss"]])
    dist_moe.export(trained.path, "repaired")
    assert dist_moe.verify(config.model.path, "repaired", config.run_dir / "masks.zarr").holds

Wrong input raises `UserError`. Nothing is printed: what the commands print is logged with Python's `logging`, under the
name `dist_moe`, at level INFO. In a process that a launcher (torchrun, deepspeed) has started, `count`, `analyze`,
`train` and `evaluate` do one rank's part of the work, as launch/*.py do: call them once in each process, with the same
arguments.

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
from dist_moe.evaluation.record import Table, read_evaluation
from dist_moe.store import Counts, MaskStore
from dist_moe.workflows.run_dir import RunDir
from dist_moe.workflows.select import select as select_masks

if TYPE_CHECKING:
    from dist_moe.weights.facts import Facts, RunFacts
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
    """Before and after, by batch, by category, and over all rows.

    A table has a line for each group, and columns (measure, "before" | "after"): "refusal loss (unsafe)" and "answer
    loss (safe)" are means over response tokens, "refused (unsafe)" and "refused (safe)" shares of rows.
    """

    path: Path
    """evaluation.json, which has the same tables."""
    batch: pd.DataFrame
    category: pd.DataFrame
    all: pd.DataFrame
    trained_on: bool
    """Whether these are the prompts of the training, so that the tables say nothing about other prompts."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A Hugging Face checkpoint, or a delta."""

    path: Path
    facts: Facts
    """Facts about the run that may be published; no paths of this machine."""


def count(config: Config | str | Path) -> Counts:
    """Run the model on all prompts and count which experts their tokens are routed to. Selects no experts.

    Args:
        config: a configuration, or the path of its YAML file.

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


def evaluate(run: str | Path, data: Sequence[str | Path] = ()) -> Evaluated:
    """Score a run's own prompts, or those in the files `data`, with the base and the trained experts, without a mask.

    Args:
        run: a run directory in which training has ended.
        data: files of prompts; none: those of the training.

    Returns:
        Tables of before and after, with a line for each batch, for each category, and for all rows.

    Raises:
        UserError: there is no finished training in `run`, or a file is not what the experts were trained from.

    Example:
        >>> dist_moe.evaluate("runs/my-run", ["held-out.jsonl"]).category["refused (unsafe)"]
    """
    from dist_moe.parallel.launch import process_group
    from dist_moe.workflows import evaluate as workflow

    with process_group() as comm:
        workflow.evaluate(Path(run), tuple(map(Path, data)), comm)
    path = RunDir(Path(run)).evaluation
    found = read_evaluation(path)
    return Evaluated(path, _frame(found.batch), _frame(found.category), _frame(found.all), found.trained_on)


def export(run: str | Path, out: str | Path, *, link: bool = False, delta: bool = False) -> Exported:
    """Write a run's trained model to the new directory `out`, or with `delta` only its experts to the new file `out`.

    Args:
        run: a run directory in which training has finished.
        out: a path that does not exist.
        link: hard-link unchanged checkpoint shards instead of copying them; not with `delta`.
        delta: write only the trained experts, as one safetensors file, for `apply`.

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
    if delta:
        return Exported(Path(out), workflow.export_delta(Path(run), Path(out)))
    return Exported(Path(out), workflow.export(Path(run), Path(out), link=link))


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


def verify(base: str | Path, model: str | Path, *masks: str | Path) -> Verification:
    """Compare an exported model with its base, byte by byte: only experts in the union of the masks may differ.

    Args:
        base: directory of the base model.
        model: directory of the exported model.
        *masks: mask store of the run, a directory or URL; all of them if the run had `train.revisions`.

    Returns:
        What was compared, what has changed, and `violations`: every difference that should not be there. `holds` is
            True
        if there is none.

    Raises:
        UserError: an input cannot be read, or the masks are for another base.

    Example:
        >>> dist_moe.verify("base", "repaired", "runs/my-run/masks.zarr").violations
        []
    """
    from dist_moe.workflows import export as workflow

    return workflow.verify(Path(base), Path(model), [str(each) for each in masks])


def _config(config: Config | str | Path) -> Config:
    return config if isinstance(config, Config) else load_config(config)


def _frame(table: Table) -> pd.DataFrame:
    lines = {
        group: {(measure, when): value for measure, pair in measures.items() for when, value in pair.items()}
        for group, measures in table.items()
    }
    return pd.DataFrame.from_dict(lines, orient="index", dtype=float)
