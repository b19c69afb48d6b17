"""From masks to trained experts, of one run or of many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dist_moe.api.arguments import as_config
from dist_moe.api.values import Trained
from dist_moe.config import Config
from dist_moe.errors import UserError
from dist_moe.workflows.run_dir import RunDir

if TYPE_CHECKING:
    from dist_moe.evaluation.comparison import Comparison


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

    config = as_config(config)
    with process_group() as comm:
        workflow.train(config, comm)
    unfinished = RunDir(config.run_dir).training if config.overwrite else None
    if (unfinished is not None and unfinished.exists()) or not RunDir(config.run_dir).experts.exists():
        raise UserError(
            f"{config.run_dir}: stopped before its end, as requested, with a checkpoint: call train again to resume"
        )
    facts = TrainedRun.open(config.run_dir).facts
    return Trained(config.run_dir, tuple(sorted(facts.union)), facts)


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
        return compare_runs(as_config(config), comm, [Path(file) for file in held_out], variants, num_seeds, rates)
