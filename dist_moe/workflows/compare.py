"""Variants of a run on one budget: what `dist-moe compare` and launch/compare.py run, in order.

Each seed deals its own batches, and is counted once; each variant selects from these counts, trains and is evaluated
in a run directory of its own. All of it goes on where it was stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_moe.config.schema import Config
from dist_moe.data.rows import read_prompts
from dist_moe.errors import UserError
from dist_moe.evaluation.comparison import COMPARISON, Comparison, levels_and_differences
from dist_moe.evaluation.places import TrainedPrompts, place_rows
from dist_moe.evaluation.rows import Kind
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.report.comparison import comparison_lines
from dist_moe.workflows.learning_rates import choose_rates
from dist_moe.workflows.model_place import from_hub, placed_data
from dist_moe.workflows.rank_log import RankLog
from dist_moe.workflows.run_dir import RunDir
from dist_moe.workflows.run_lock import run_lock
from dist_moe.workflows.variants import Run, Variant, run_variant, variant_config

log = logging.getLogger(__name__)

KIND: Kind = "held out"


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates to choose from, and the share of the training rows to choose by."""

    lrs: tuple[float, ...]
    share: float = 0.2


def compare(
    config: Config,
    comm: Comm,
    data: Sequence[Path],
    variants: Sequence[str],
    num_seeds: int,
    rates: Rates | None = None,
) -> Comparison:
    """Train and evaluate each variant from each seed in config.run_dir, and say what differs beyond chance.

    Args:
        config: of the run; `run_dir` is where all runs of the comparison lie.
        comm: all ranks.
        data: prompts to be scored: held out, as others are not compared.
        variants: see `Variant.of`; the first is what the others are compared with.
        num_seeds: config.seed and the following ones.
        rates: to choose each variant's learning rate from; None: as configured.

    Raises:
        UserError: on all ranks, if something is wrong; what is done already stays, and is not done again.
    """
    config, data = from_hub(config, comm), placed_data(data, comm)
    with together(comm):
        chosen = [Variant.of(text) for text in dict.fromkeys(variants)]
        for each in chosen:
            variant_config(config, config.seed, each)
        data_hash = _held_out_hash(config, data)
        _require_no_run(config.run_dir)
    seeds = list(range(config.seed, config.seed + num_seeds))
    with run_lock(config.run_dir, comm), RankLog(config.run_dir, comm, "compare", "runs") as told:
        told.begin(0, len(chosen) * len(seeds))
        if rates is not None:
            chosen = choose_rates(config, comm, chosen, rates.lrs, rates.share)
        runs = dict[str, list[Run]]()
        for each in chosen:
            runs[each.name] = []
            for seed in seeds:
                runs[each.name].append(run_variant(config, comm, data, data_hash, seed, each, chosen))
                told.advance(1)
        return _write(config, comm, seeds, runs, chosen)


def _write(
    config: Config, comm: Comm, seeds: Sequence[int], runs: Mapping[str, Sequence[Run]], chosen: Sequence[Variant]
) -> Comparison:
    """The comparison in its file and on the console."""
    lrs = {each.name: variant_config(config, config.seed, each).train.lr for each in chosen}
    with together(comm):
        found = _compared(seeds, runs, lrs)
        if comm.rank == 0:
            found.write(config.run_dir / COMPARISON)
    for line in comparison_lines(found):
        log.info(line)
    log.info(f"Comparison: {config.run_dir / COMPARISON}")
    return found


def _require_no_run(path: Path) -> None:
    """Refuse the directory of a single run: a report of it would show the comparison alone."""
    run = RunDir(path)
    for place in (run.counts, run.masks, run.metrics, run.experts):
        if place.exists():
            raise UserError(
                f"{path} is the directory of a run: it has {place.name}. A comparison has one of its own: "
                f"--run-dir {path.with_name(f'{path.name}-compare')}"
            )


def _held_out_hash(config: Config, data: Sequence[Path]) -> str:
    """The hash of the rows to be scored; refuses before any training those that could not be compared afterwards."""
    rows, trained = (read_prompts(paths, config.data.refusal) for paths in (tuple(data), config.data.paths))
    known = TrainedPrompts(tuple(trained.prompts), (0,) * len(trained.prompts))
    places = place_rows(rows.prompts, known, config.evaluation.near_equal).places
    if not any(place.kind == KIND for place in places):
        raise UserError("--held-out: no row is held out: each is trained, or is like one that is; give other rows")
    return rows.data_hash


def _compared(seeds: Sequence[int], runs: Mapping[str, Sequence[Run]], lrs: Mapping[str, float]) -> Comparison:
    """The evaluations of all runs against each other."""
    reference, *_ = runs
    rows = {
        name: [[row for row in run.evaluation.rows if row.kind == KIND] for run in of_seeds]
        for name, of_seeds in runs.items()
    }
    facts = runs[reference][0].evaluation.facts
    judge = facts.judges[0].name
    levels, differences = levels_and_differences(rows, judge, reference)
    return Comparison(
        seeds=list(seeds),
        judge=judge,
        kind=KIND,
        data_hash=facts.data_hash,
        model_hash=facts.model_hash,
        reference=reference,
        num_experts={name: [run.num_experts for run in of_seeds] for name, of_seeds in runs.items()},
        num_parameters={name: [run.num_parameters for run in of_seeds] for name, of_seeds in runs.items()},
        lrs=dict(lrs),
        levels=levels,
        differences=differences,
    )
