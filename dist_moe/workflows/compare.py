"""Variants of a run on one budget: what `dist-moe compare` and launch/compare.py run, in order.

Each seed deals its own batches, and is counted once; each variant selects from these counts, trains and is evaluated
in a run directory of its own. All of it goes on where it was stopped.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_moe.config.judges import chosen_judges
from dist_moe.config.load import changed, settings_of
from dist_moe.config.schema import Config
from dist_moe.data.rows import read_prompts
from dist_moe.errors import UserError, shown
from dist_moe.evaluation.comparison import COMPARISON, Comparison, levels_and_differences
from dist_moe.evaluation.places import TrainedPrompts, place_rows
from dist_moe.evaluation.record import INDEX, Evaluation, read_evaluation
from dist_moe.evaluation.rows import Kind
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.report.comparison import comparison_lines
from dist_moe.rules import RULES
from dist_moe.selection.statistics import selection_rule
from dist_moe.store import MaskStore
from dist_moe.workflows.count import count
from dist_moe.workflows.evaluate import evaluate
from dist_moe.workflows.run_dir import RunDir
from dist_moe.workflows.select import select
from dist_moe.workflows.train import train
from dist_moe.workflows.trained_run import TrainedRun, result_settings

log = logging.getLogger(__name__)

KIND: Kind = "held out"


@dataclass(frozen=True, slots=True)
class Variant:
    """A rule, and settings that differ from the configuration's."""

    rule: str
    settings: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, text: str) -> Variant:
        """From `RULE` or `RULE,SETTING=VALUE,...`, such as `lowest,train.mode=update`.

        Raises:
            UserError: the rule is none, or a setting is not one of training's.
        """
        rule, *settings = text.split(",")
        RULES.find(rule)
        pairs = []
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals or not key.startswith("train."):
                raise UserError(f"variant {shown(text)}: expected RULE,train.SETTING=VALUE, got {shown(setting)}")
            if key == "train.masks":
                raise UserError(f"variant {shown(text)}: train.masks is each variant's own: name its rule instead")
            pairs.append((key, value))
        return cls(rule, tuple(pairs))

    @property
    def name(self) -> str:
        return ",".join([self.rule, *(f"{key.removeprefix('train.')}={value}" for key, value in self.settings)])

    @property
    def directory(self) -> str:
        """A name for its run."""
        return re.sub(r"[^A-Za-z0-9.,=_-]", "_", self.name)


def compare(config: Config, comm: Comm, data: Sequence[Path], variants: Sequence[str], num_seeds: int) -> Comparison:
    """Train and evaluate each variant from each seed in config.run_dir, and say what differs beyond chance.

    Args:
        config: of the run; `run_dir` is where all runs of the comparison lie.
        comm: all ranks.
        data: prompts to be scored: held out, as others are not compared.
        variants: see `Variant.of`; the first is what the others are compared with.
        num_seeds: config.seed and the following ones.

    Raises:
        UserError: on all ranks, if something is wrong; what is done already stays, and is not done again.
    """
    with together(comm):
        chosen = [Variant.of(text) for text in dict.fromkeys(variants)]
        for each in chosen:
            _config(config, config.seed, each)
        data_hash = _held_out_hash(config, data)
    seeds = list(range(config.seed, config.seed + num_seeds))
    runs = {each.name: [_run(config, comm, data, data_hash, seed, each, chosen) for seed in seeds] for each in chosen}
    with together(comm):
        found = _compared(seeds, runs)
        if comm.rank == 0:
            found.write(config.run_dir / COMPARISON)
    for line in comparison_lines(found):
        log.info(line)
    log.info(f"Comparison: {config.run_dir / COMPARISON}")
    return found


@dataclass(frozen=True, slots=True)
class Run:
    """One variant from one seed."""

    evaluation: Evaluation
    num_experts: int
    """That were trained."""


def _run(
    config: Config,
    comm: Comm,
    data: Sequence[Path],
    data_hash: str,
    seed: int,
    variant: Variant,
    variants: Sequence[Variant],
) -> Run:
    """Train and evaluate; what is there already is checked, and not done again."""
    counting, own = _counting(config, seed, variants), _config(config, seed, variant)
    counts, masks, run = RunDir(counting.run_dir).counts, Path(str(own.train.masks)), RunDir(own.run_dir)
    log.info(f"\n== Seed {seed}, {variant.name}: {run.path}")
    with together(comm):
        has_counts, has_experts = counts.exists(), run.experts.exists()
    if not has_counts:
        count(counting, comm)
    rule = selection_rule(changed(counting, [f"--analysis.rule={variant.rule}"]).analysis)
    with together(comm):
        if comm.rank == 0 and not masks.exists():
            select(counting.run_dir, {name: str(value) for name, value in rule.facts.items()}, masks.stem)
    if not has_experts:
        train(own, comm)
    with together(comm):
        if not run.experts.exists():
            raise UserError(f"{run.path}: stopped before its end, as asked, and saved: the same command goes on")
        _require_settings(masks, MaskStore.open(masks).selection_rule, rule.facts)
        trained = TrainedRun.open(run.path, every_byte=comm.rank == 0)
        _require_settings(run.path, trained.facts.settings, result_settings(own))
        found = read_evaluation(run.path) if (run.path / INDEX).exists() else None
    if found is None or not _is_of(found, own, data_hash, trained.experts.digest):
        evaluate(run.path, data, comm)
        with together(comm):
            found = read_evaluation(run.path)
    return Run(found, len(trained.experts.experts))


def _counting(config: Config, seed: int, variants: Sequence[Variant]) -> Config:
    """Of the counts that all variants of a seed select from."""
    gradients = [each.rule for each in variants if "gradients" in RULES[each.rule].needs][:1]
    words = ["--run-dir", str(config.run_dir / f"seed-{seed}"), "--seed", str(seed), "--no-overwrite"]
    return changed(config, words + [f"--analysis.rule={rule}" for rule in gradients])


def _config(config: Config, seed: int, variant: Variant) -> Config:
    """Of one run."""
    place = config.run_dir / f"seed-{seed}"
    words = ["--run-dir", str(place / variant.directory), "--seed", str(seed), "--no-overwrite"]
    words += [
        "--train.masks",
        str(place / f"{variant.rule}.zarr"),
        *(f"--{key}={value}" for key, value in variant.settings),
    ]
    return changed(config, words)


def _held_out_hash(config: Config, data: Sequence[Path]) -> str:
    """The hash of the rows to be scored; refuses before any training those that could not be compared afterwards."""
    rows, trained = (read_prompts(paths, config.data.refusal) for paths in (tuple(data), config.data.paths))
    known = TrainedPrompts(tuple(trained.prompts), (0,) * len(trained.prompts))
    places = place_rows(rows.prompts, known, config.evaluation.near_equal).places
    if not any(place.kind == KIND for place in places):
        raise UserError("--held-out: no row is held out: each is trained, or is like one that is; give other rows")
    return rows.data_hash


def _require_settings(place: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse what an earlier comparison has left with other settings."""
    for key in wanted:
        if found.get(key) != wanted[key]:
            here = f"{key} is {shown(wanted[key])}"
            raise UserError(f"{here}, but {place} was made with {shown(found.get(key))}: choose another run_dir")


def _is_of(evaluation: Evaluation, config: Config, data_hash: str, experts_digest: str) -> bool:
    """Whether an evaluation is of these rows, with these settings, and of these experts."""
    facts, settings = evaluation.facts, settings_of(config)
    judges = json.loads(json.dumps([judge.facts for judge in chosen_judges(config)]))
    return (
        facts.data_hash == data_hash
        and facts.experts_digest == experts_digest
        and [judge.facts for judge in facts.judges] == judges
        and all(settings[key] == value for key, value in facts.settings.items() if key.startswith("evaluation."))
    )


def _compared(seeds: Sequence[int], runs: Mapping[str, Sequence[Run]]) -> Comparison:
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
        levels=levels,
        differences=differences,
    )
