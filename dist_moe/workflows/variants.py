"""One variant of a run from one seed: selected, trained and evaluated in a directory of its own."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dist_moe.config.load import changed, settings_of
from dist_moe.config.schema import Config
from dist_moe.engines.build import engine_name
from dist_moe.errors import UserError, shown
from dist_moe.evaluation.base_answers import BASE_ANSWERS
from dist_moe.evaluation.record import INDEX, Evaluation, read_evaluation
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.rules import RULES
from dist_moe.selection.statistics import selection_rule
from dist_moe.store import MaskStore
from dist_moe.training.checkpoint_index import checkpoint_directories
from dist_moe.workflows.count import count
from dist_moe.workflows.evaluate import evaluate
from dist_moe.workflows.evaluation_request import EvaluationRequest
from dist_moe.workflows.judges import chosen_judges
from dist_moe.workflows.run_dir import RunDir
from dist_moe.workflows.select import select
from dist_moe.workflows.train import train
from dist_moe.workflows.train_given import require_trainable
from dist_moe.workflows.trained_run import TrainedRun, result_settings

log = logging.getLogger(__name__)

LR = "train.lr"
Settings = tuple[tuple[str, str], ...]
BASELINES: dict[str, tuple[str, Settings]] = {
    "full": ("every_expert", (("train.trains", "experts_and_dense"), ("train.mode", "update"))),
    "router_only": ("every_expert", (("train.trains", "routers"), ("train.mode", "update"))),
}
"""Baselines that are no selection rule: a rule, and settings of training."""
TEMPLATE = ("data.chat_template", "data.template_date", "data.template_kwargs")
"""Settings that determine the tokens of rows, besides those of `result_settings`."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A rule or a baseline, and settings that differ from the configuration's."""

    label: str
    """Name of the rule, or of the baseline."""
    settings: Settings

    @classmethod
    def of(cls, text: str) -> Variant:
        """From `RULE` or `RULE,SETTING=VALUE,...`, such as `lowest,train.mode=update`; or `BASELINE,...`.

        Raises:
            UserError: the rule is none, or a setting is not one of training's.
        """
        label, *settings = text.split(",")
        if label not in BASELINES:
            RULES.find(label)
        pairs = []
        for setting in settings:
            key, equals, value = setting.partition("=")
            if not equals or not key.startswith("train."):
                raise UserError(f"variant {shown(text)}: expected RULE,train.SETTING=VALUE, got {shown(setting)}")
            if key == "train.masks":
                raise UserError(f"variant {shown(text)}: train.masks is each variant's own: name its rule instead")
            pairs.append((key, value))
        return cls(label, tuple(pairs))

    @property
    def rule(self) -> str:
        """The rule that selects its experts."""
        return BASELINES[self.label][0] if self.label in BASELINES else self.label

    @property
    def all_settings(self) -> Settings:
        """Those of the baseline, then its own."""
        return (BASELINES[self.label][1] if self.label in BASELINES else ()) + self.settings

    @property
    def has_lr(self) -> bool:
        """Whether it names its learning rate."""
        return any(key == LR for key, _ in self.settings)

    def at(self, lr: float) -> Variant:
        """The same with this learning rate."""
        return replace(self, settings=(*self.settings, (LR, repr(lr))))

    @property
    def name(self) -> str:
        return ",".join([self.label, *(f"{key.removeprefix('train.')}={value}" for key, value in self.settings)])

    @property
    def directory(self) -> str:
        """A name for its run."""
        return re.sub(r"[^A-Za-z0-9.,=_-]", "_", self.name)


@dataclass(frozen=True, slots=True)
class Run:
    """One variant from one seed."""

    evaluation: Evaluation
    num_experts: int
    """That were trained."""
    num_parameters: int
    """That could be trained, of experts and of dense weights."""


def run_variant(
    config: Config,
    comm: Comm,
    data: Sequence[Path],
    data_hash: str,
    seed: int,
    variant: Variant,
    variants: Sequence[Variant],
) -> Run:
    """Train and evaluate on the rows of `data`; what is there already is checked, and not done again.

    Raises:
        UserError: on all ranks, if something is wrong, or the training was asked to stop.
    """
    counting, own = _counting(config, seed, variants), variant_config(config, seed, variant)
    counts, masks, run = RunDir(counting.run_dir).counts, Path(str(own.train.masks)), RunDir(own.run_dir)
    log.info(f"\n== Seed {seed}, {variant.name}: {run.path}")
    with together(comm):
        has_counts, has_experts = counts.exists(), run.experts.exists()
        has_checkpoint = bool(checkpoint_directories(run.checkpoints))
    if not has_counts:
        count(counting, comm)
    rule = selection_rule(changed(counting, [f"--analysis.rule={variant.rule}"]).analysis)
    with together(comm):
        if comm.rank == 0 and not masks.exists():
            select(counting.run_dir, {name: str(value) for name, value in rule.facts.items()}, masks.stem)
    if not has_experts:  # what was cut off before its first checkpoint is nobody's, and trained anew
        train(own if has_checkpoint else replace(own, overwrite=True), comm)
    with together(comm):
        if not run.experts.exists():
            raise UserError(f"{run.path}: stopped before its end, as asked, and saved: the same command goes on")
        _require_settings(masks, MaskStore.open(masks).selection_rule, rule.facts)
        trained = TrainedRun.open(run.path, every_byte=comm.rank == 0)
        _require_settings(run.path, trained.facts.settings, result_settings(own))
        tokens = settings_of(own)
        _require_settings(run.path, settings_of(trained.config), {key: tokens[key] for key in TEMPLATE})
        found = read_evaluation(run.path) if (run.path / INDEX).exists() else None
    if found is None or not _is_of(found, own, data_hash, trained.experts.digest):
        kept = config.run_dir / BASE_ANSWERS
        evaluate(EvaluationRequest(path=run.path, data=data, section=own.evaluation, base_answers=kept), comm)
        with together(comm):
            found = read_evaluation(run.path)
    num_parameters = trained.facts.num_union_parameters + trained.facts.num_dense_parameters
    return Run(found, len(trained.experts.experts), num_parameters)


def _counting(config: Config, seed: int, variants: Sequence[Variant]) -> Config:
    """Of the counts that all variants of a seed select from."""
    gradients = [each.rule for each in variants if "gradients" in RULES[each.rule].needs][:1]
    words = ["--run-dir", str(config.run_dir / f"seed-{seed}"), "--seed", str(seed), "--no-overwrite"]
    return changed(config, words + [f"--analysis.rule={rule}" for rule in gradients])


def variant_config(config: Config, seed: int, variant: Variant) -> Config:
    """Of one run.

    Raises:
        UserError: a setting is wrong, or cannot be trained here.
    """
    place = config.run_dir / f"seed-{seed}"
    words = ["--run-dir", str(place / variant.directory), "--seed", str(seed), "--no-overwrite"]
    words += [
        "--train.masks",
        str(place / f"{variant.rule}.zarr"),
        *(f"--{key}={value}" for key, value in variant.all_settings),
    ]
    own = changed(config, words)
    require_trainable(own, engine_name(own))
    return own


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
