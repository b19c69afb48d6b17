"""What was done, with which model, data and rule, and to how many experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from markupsafe import Markup

from dist_moe.config.objective import active_terms
from dist_moe.config.schema import Config
from dist_moe.hub.names import model_name
from dist_moe.report.card import BASELINES, CONTROL
from dist_moe.report.page.blocks import Cell, Section, facts, joined, note
from dist_moe.report.page.contents import RunContents
from dist_moe.report.page.flow import flow_picture
from dist_moe.selection.stored import stored_rule


def what(run: RunContents, key: str) -> Section:
    """Facts and flow side by side."""
    is_run = run.masks is not None or run.counts is not None or run.steps
    picture = flow_picture(run, f"{key}-flow") if is_run else Markup()
    parts = [Markup('<div class="beside">{}{}</div>').format(facts(dict(_facts(run))), picture)]
    is_control = run.masks is not None and stored_rule(run.masks).is_control
    standing = BASELINES.get(run.training.facts.trains) if run.training is not None else None
    if said := standing or (CONTROL if is_control else ""):
        parts.insert(0, note(said.replace("**", "")))
    return Section("what", "What was done", joined(parts))


def _facts(run: RunContents) -> Iterator[tuple[str, Cell]]:
    config, masks, training = run.config, run.masks, run.training
    if config is None and run.evaluation is not None:
        yield "Model", run.evaluation.facts.model_name
    if config is not None:
        yield "Base model", model_name(config.model.path)
        yield "Prompt files", ", ".join(path.name for path in config.data.paths)
    if masks is not None:
        rule = stored_rule(masks)
        yield "Selection rule", f"{rule.name}: of a batch's experts, {rule.in_words}"
        yield "Counted tokens", masks.counted_tokens
        if len(run.later_masks):
            yield "Masks changed", f"{len(run.later_masks)} time(s) during training"
    if training is not None:
        found = training.facts
        yield "Mode", f"route, fill {found.fill}, scope {found.scope}" if found.mode == "route" else found.mode
        share = 100 * found.num_union_parameters / found.num_parameters
        yield "Experts open to training", f"{len(found.union)}, {share:.2f} % of all parameters"
        yield "Experts changed", len(training.experts)
        if found.trains != "experts":
            yield "Trained", " ".join([found.trains, *found.rounds])
            dense = 100 * found.num_dense_parameters / found.num_parameters
            yield "Dense weights open to training", f"{dense:.2f} % of all parameters"
        yield "Steps", found.num_steps
    elif run.steps:
        yield "Steps so far", len(run.steps)
    if config is not None and run.steps:
        yield "Objective", ", ".join(objective(config))
        yield "Learning rate", f"{config.train.lr:g}, {config.train.schedule}"
        yield "Seed", config.seed


def objective(config: Config) -> Iterator[str]:
    """Its terms with their weights."""
    for term in active_terms(config.train.objective):
        others = [f"{each.name} {getattr(term, each.name)}" for each in fields(term) if each.name != "weight"]
        yield f"{term.weight:g} x {term.name}" + (f" ({', '.join(others)})" if others else "")
