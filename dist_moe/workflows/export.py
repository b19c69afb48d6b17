"""Exports a run as a Hugging Face checkpoint or as a delta, applies a delta, and compares a model with its base."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd

from dist_moe.errors import UserError
from dist_moe.evaluation.curve import alpha_name, alpha_place
from dist_moe.evaluation.record import INDEX, read_evaluation
from dist_moe.files import require_absent
from dist_moe.hub.names import model_name
from dist_moe.moe.layout import hub_layout
from dist_moe.report.card import model_card, quoted
from dist_moe.stats.names import expert_name
from dist_moe.store.counts import Counts
from dist_moe.store.origin import require_same_origin
from dist_moe.weights.changes import dense_places, trained_changes, trained_places
from dist_moe.weights.delta import delta_changes, delta_places, read_facts, write_delta
from dist_moe.weights.difference import difference as compare_models
from dist_moe.weights.directory import model_hash
from dist_moe.weights.export import export_checkpoint
from dist_moe.weights.facts import Facts, Quoted
from dist_moe.weights.fetched import model_directory
from dist_moe.weights.layout import HubLayout
from dist_moe.weights.model_dir import check_model_dir
from dist_moe.weights.moved import Difference
from dist_moe.weights.trained import ADVICE
from dist_moe.workflows.trained_run import TrainedRun

log = logging.getLogger(__name__)


def export(run_dir: Path, out: Path, *, link: bool = False, alpha: float = 1.0, base_routers: bool = False) -> Facts:
    """Write a run's trained model to the new directory `out`; with `link`, unchanged shards are hard links.

    `alpha` is the share of the trained experts' change that is exported: see `dist_moe.weights.scale`. With
    `base_routers`, routers that were trained are left as in the base.
    """
    require_absent(out, "choose another --out or remove it")
    run = TrainedRun.open(run_dir)
    layout = _layout(run)
    base, facts = layout.path, _facts(run, layout, alpha, base_routers=base_routers)
    changes = trained_changes(layout, run.experts, alpha, base_routers=base_routers)
    export_checkpoint(base, changes, out, model_card(facts, base), link=link)
    log.info(f"Exported {out}: {_in_words(facts)}, everything else as in {base}")
    return facts


def export_delta(run_dir: Path, out: Path, *, alpha: float = 1.0, base_routers: bool = False) -> Facts:
    """Write a run's trained experts, and the facts about their training, to the new file `out`; the rest as above."""
    require_absent(out, "choose another --out or remove it")
    run = TrainedRun.open(run_dir)
    layout = _layout(run)
    base, facts = layout.path, _facts(run, layout, alpha, base_routers=base_routers)
    changes = trained_changes(layout, run.experts, alpha, base_routers=base_routers)
    places = [place for place, _ in trained_places(layout, run.experts.experts)]
    places += dense_places(layout, run.experts, base_routers=base_routers)
    write_delta(out, layout, places, changes, facts)
    log.info(f"Exported {out}: {_in_words(facts)}, {out.stat().st_size / 1e6:,.1f} MB")
    log.info(f"  dist-moe apply {base} {out} --out NEW_DIRECTORY")
    return facts


def apply(base: Path, delta: Path, out: Path) -> Facts:
    """Write to the new directory `out` what `export` would write for the run from which `delta` comes."""
    require_absent(out, "choose another --out or remove it")
    base = model_directory(base, "base")
    facts = read_facts(delta)
    _require_base(base, facts.model_hash, delta)
    layout = hub_layout(base)
    places = delta_places(delta, facts, layout)
    export_checkpoint(base, delta_changes(delta, layout, places), out, model_card(facts, base))
    log.info(f"Exported {out}: {_in_words(facts)} from {delta}, everything else as in {base}")
    return facts


def _in_words(facts: Facts) -> str:
    """What was trained and has changed."""
    what = f"{facts.num_trained_experts} trained experts"
    if facts.num_dense_tensors or (facts.trains != "experts" and not facts.base_routers):
        kind = "dense tensors" if facts.trains == "experts_and_dense" else "router tensors"
        what = f"{what} and {facts.num_dense_tensors} trained {kind}"
    if facts.alpha != 1:
        what = f"{what} with {alpha_name(facts.alpha)} of their change"
    return f"{what}, the routers as in the base" if facts.base_routers else what


def _layout(run: TrainedRun) -> HubLayout:
    """Of the run's base model."""
    base = model_directory(run.config.model.path, "model.path")
    _require_base(base, run.facts.model_hash, run.dir.experts)
    return hub_layout(base)


def _facts(run: TrainedRun, layout: HubLayout, alpha: float, *, base_routers: bool) -> Facts:
    """The facts about a run that may be published: names and hashes, no paths of this machine."""
    if base_routers and run.facts.trains in ("experts", "routers"):
        left = "it has trained no router" if run.facts.trains == "experts" else "it has trained nothing else"
        raise UserError(f"--base-routers: {run.dir.path} was trained with train.trains {run.facts.trains}: {left}; "
                        "leave it out")  # fmt: skip
    facts, experts = run.facts, run.experts.experts
    outside = sorted({*experts} - {*facts.union})
    if outside:
        raise UserError(f"{run.dir.experts}: {expert_name(*outside[0])} is not in the run's union of experts: {ADVICE}")
    facts.require_rules(str(run.dir.experts))
    name = model_name(layout.path)
    num_dense = len(dense_places(layout, run.experts, base_routers=base_routers))
    evaluation = None if base_routers else _evaluation(run, alpha)  # which is with the trained routers
    return Facts.of(facts, name, len(experts), num_dense, evaluation, alpha, base_routers)


def _evaluation(run: TrainedRun, alpha: float) -> Quoted | None:
    """The evaluation that the model card quotes: the run's at this `alpha`, if it is of the present experts."""
    place = run.dir.path if alpha == 1 else alpha_place(run.dir.path, alpha)
    file = place / INDEX
    if not file.exists():
        return None
    found = read_evaluation(place)
    if found.facts.experts_digest != run.experts.digest:
        log.info(f"{file} is of other experts than {run.dir.experts} has: the model card does not quote it")
        return None
    return quoted(found)


def _require_base(base: Path, expected: str, what: Path) -> None:
    check_model_dir(base)
    found = model_hash(base)
    if found != expected:
        raise UserError(
            f"{base} is not the model that {what} was trained from: its hash is {found[:12]}, expected "
            f"{expected[:12]}; restore it, or give the right one"
        )


def difference(base: Path, model: Path) -> Difference:
    """What differs between a base and a model that any trainer has made from it."""
    base, model = model_directory(base, "base"), model_directory(model, "model")
    for path in (base, model):
        check_model_dir(path)
    return compare_models(hub_layout(base), hub_layout(model))


def routing_of(counts: str, base: Path) -> pd.DataFrame:
    """A line for each expert of `base`: its share of the safe and of the unsafe prompts' tokens, from a counts store.

    Raises:
        UserError: the store cannot be read, or is of another model.
    """
    store = Counts.open_whole(counts)
    require_same_origin(store, model_hash=model_hash(model_directory(base, "base")))
    return store.aggregated
