"""The stages as functions: `import dist_moe` offers them. Values in, values out; bad input is a `UserError`.

    config = dist_moe.load_config("run.yaml")
    masks = dist_moe.analyze(config)
    trained = dist_moe.train(config)
    print(trained.metrics[["step", "loss"]])
    dist_moe.export(trained.path, "repaired")
    assert dist_moe.verify(config.model.path, "repaired", config.run_dir / "masks.zarr").holds

Nothing is printed: what the commands print is logged by Python's `logging`, under `dist_moe`, at level INFO. In a
process that a launcher (torchrun, deepspeed) has started, `count`, `analyze`, `train` and `evaluate` are one rank's
part of the work, as in launch/*.py: one call a process, the same on all ranks.

What needs torch is imported by the function that needs it, so `select` and all that reads a store do without.
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
    """A run whose training has ended."""

    path: Path
    """The run directory."""
    union: tuple[tuple[int, int], ...]
    """(layer, expert) of each expert that at least one batch could train, sorted."""
    facts: RunFacts
    """What the experts were trained from, and how."""

    @property
    def metrics(self) -> pd.DataFrame:
        """One line a step: step, epoch, batch, loss (mean over the batch's loss tokens), grad_norm, and more."""
        return pd.read_json(RunDir(self.path).metrics, lines=True)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Before and after, by batch, by category, and over all rows.

    A table has a line for each group, and columns (measure, "before" | "after"): "refusal loss (unsafe)" and "answer
    loss (safe)" are means over response tokens, "refused (unsafe)" and "refused (safe)" shares of rows.
    """

    path: Path
    """evaluation.json, which has them too."""
    batch: pd.DataFrame
    category: pd.DataFrame
    all: pd.DataFrame
    trained_on: bool
    """Whether the prompts are those of the training itself, so that the tables say nothing of others."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A Hugging Face checkpoint, or a delta."""

    path: Path
    facts: Facts
    """What may be told of the run outside of it; no paths of this machine."""


def count(config: Config | str | Path) -> Counts:
    """Count the routing of every prompt, and choose nothing yet.

    Args:
        config: a configuration, or the path of its YAML file.

    Returns:
        The run's counts store: `prompt_counts` int [P, L, E] and `risk_diff` float [B, L, E] for P prompts in B
        batches, L MoE layers and E experts a layer.

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
    """Choose each batch's unsafe experts from a run's counts, and write them as the mask set `run`/`out`.zarr.

    Args:
        run: a run directory with counts.zarr, as `count` and `analyze` leave it.
        rule: name of a selection rule; None: as in the run's configuration.
        out: name of the mask set, which must be new.
        **parameters: of the rule; the others are as in the run's configuration.

    Returns:
        The mask set: `masks` bool [B, L, E] for B batches, L MoE layers and E experts a layer.

    Raises:
        UserError: there are no counts, the rule is wrong or selects nothing, or there is a mask set of that name.

    Example:
        >>> dist_moe.select("runs/my-run", "lowest", out="lowest", threshold=0.1).union().sum()
    """
    words = {name: str(value) for name, value in parameters.items()}
    return select_masks(Path(run), words if rule is None else {"name": rule, **words}, out)


def analyze(config: Config | str | Path) -> MaskStore:
    """Count routing for every batch, and choose each batch's unsafe experts: `count`, and then `select`.

    Args:
        config: a configuration, or the path of its YAML file.

    Returns:
        The run's mask store: `masks` bool [B, L, E] for B batches, L MoE layers and E experts a layer.

    Raises:
        UserError: the input is wrong, or a part of the analysis is left to other jobs (`analysis.part`).

    Example:
        >>> store = dist_moe.analyze("run.yaml")
        >>> store.masks[0].sum()  # unsafe experts of the first batch
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
    """Train each batch's unsafe experts, and nothing else, from the masks that `analyze` has written.

    Args:
        config: a configuration, or the path of its YAML file.

    Returns:
        The run: its union of experts, the facts of its training, and its metrics, one line for each step.

    Raises:
        UserError: the input is wrong, or somebody has asked the run to stop before its end.

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
    """Write a run's trained model to the new directory `out`, or with `delta` its experts to the new file `out`.

    Args:
        run: a run directory in which training has ended.
        out: where nothing is yet.
        link: hard-link the shards without changes instead of copying them; not with `delta`.
        delta: write only the trained experts, as one safetensors file, for `apply`.

    Returns:
        Where it is, and the facts of the run that it comes from.

    Raises:
        UserError: there is no finished training in `run`, its base model is another one now, or `out` exists.

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
    """Write to the new directory `out` what `export` would have written for the run that a delta comes from.

    Args:
        base: directory of the model that the run was trained from.
        delta: file that `export` has written with `delta=True`.
        out: where nothing is yet.

    Returns:
        The checkpoint, and what the delta says of its run.

    Raises:
        UserError: one of them cannot be read, the delta is of another base, or `out` exists.

    Example:
        >>> dist_moe.apply("base", "delta.safetensors", "repaired").path
    """
    from dist_moe.workflows import export as workflow

    return Exported(Path(out), workflow.apply(Path(base), Path(delta), Path(out)))


def verify(base: str | Path, model: str | Path, *masks: str | Path) -> Verification:
    """Compare an exported model with its base, bit for bit: only experts of the masks' union may differ.

    Args:
        base: directory of the base model.
        model: directory of the exported model.
        *masks: mask store of the run, a directory or URL; of a run with `train.revisions` all of them.

    Returns:
        What was compared, what has changed, and each difference that should not be; `holds` says whether there is none.

    Raises:
        UserError: one of them cannot be read, or the masks are of another base.

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
