"""Selects masks for the batches of a counts store: used by `dist-moe select` and by comparisons with other rules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import reduce
from operator import add

from dist_moe.artefacts import checked
from dist_moe.errors import UserError
from dist_moe.rules import Rule
from dist_moe.rules.controls import Control
from dist_moe.rules.rule import Unselected
from dist_moe.selection.evidence import evidence_of_each
from dist_moe.selection.statistics import batch_results, statistic_kinds
from dist_moe.selection.stored import stored_rule
from dist_moe.stats.evidence import Evidence, Population
from dist_moe.stats.population import PopulationSums
from dist_moe.stats.settings import StatisticsConfig
from dist_moe.store import Counts, MaskPlan, MaskResults, MaskStore
from dist_moe.store.files import ADVICE

TABLES = {"gates": "analysis.gates: true", "gradients": "analysis.rule: gradient"}
"""Tables that a rule may need besides the counts, and the setting with which each is measured."""


def mask_plan(counts: Counts, rule: Rule, settings: StatisticsConfig) -> MaskPlan:
    """All that a mask store contains except the batches' own results.

    Raises:
        UserError: the rule needs something that was not measured, or that the settings turn off.
    """
    for table, how in TABLES.items():
        if table in rule.needs and table not in counts.table_names:
            raise UserError(f"the rule {rule.name} needs {table}, which {counts.path} does not have: count with {how}")
    if "tests" in rule.needs and not settings.permutations:
        raise UserError(f"the rule {rule.name} needs tests, but analysis.statistics.permutations is 0: set it to 2000")
    return MaskPlan(
        index=counts.index,
        num_experts=counts.num_experts,
        experts_per_token=counts.experts_per_token,
        counted_tokens=counts.counted_tokens,
        layer_names=counts.layer_names,
        provenance=counts.provenance | {"statistics": asdict(settings)},
        selection_rule=rule.facts,
        counts_digest=counts.digest,
        statistics=statistic_kinds(rule, settings),
    )


def seed_of(counts: Counts) -> int:
    """The seed of the run that counted; all random draws follow from it."""
    return int(counts.provenance.get("seed", 0))


def settings_of(masks: MaskStore) -> StatisticsConfig:
    """The statistics settings with which masks were selected.

    Raises:
        UserError: the store's settings are not valid.
    """
    stored = masks.provenance.get("statistics", {})
    return checked(StatisticsConfig, stored, f"{masks.path} is damaged: provenance.statistics", ADVICE)


def sums_of(counts: Counts, batches: range, rule: Rule, *, prefix: str = "") -> PopulationSums:
    """What consecutive batches contribute to the sums over all batches that the rule needs."""
    found = counts.of_batches(batches, tables=(), prefix=prefix)
    each = evidence_of_each(counts.index.of(batches), found, StatisticsConfig(), seed=0)
    needs_union = "union" in rule.needs
    return reduce(add, (PopulationSums.of(one, rule.counted_as.select(one) if needs_union else None) for one in each))


def population_of(sums: Iterable[PopulationSums]) -> Population:
    """What is known of all batches together, from the sums of each step of `Counts.steps`, in order."""
    return reduce(add, sums).population()


def selected(
    counts: Counts,
    batches: range,
    rule: Rule,
    settings: StatisticsConfig,
    population: Population,
    *,
    progress: bool,
) -> MaskResults:
    """Masks and statistics of consecutive batches."""
    index, found = counts.index.of(batches), counts.of_batches(batches, tables=rule.needs & TABLES.keys())
    return batch_results(found, index, rule, settings, seed_of(counts), population, show_progress=progress)


def require_some(masks: MaskStore, counts: Counts, rule: Rule) -> None:
    """Raise unless at least one batch has an expert; single batches may have an empty mask.

    Raises:
        UserError: no batch has an expert.
    """
    seen = unselected(masks, counts)
    if seen is not None and seen.num_empty == seen.num_batches:
        raise UserError(rule.counted_as.none_selected(seen))


def unselected(masks: MaskStore, counts: Counts) -> Unselected | None:
    """The batches without an expert, selected from these counts; None: each has one."""
    empty = {batch.index for batch in masks.batches if not batch.num_unsafe_experts}
    if not empty:
        return None
    chosen, smallest_p = sorted(empty), masks.statistics.get("smallest_p_value")
    return Unselected(
        num_empty=len(empty),
        num_batches=len(masks.batches),
        largest_risk_diff=max(
            float(counts.risk(step).risk_diff_BLE[of_step].max())
            for step in counts.steps()
            if (of_step := [batch - step.start for batch in step if batch in empty])
        ),
        num_prompts=int(masks.arms_B2[chosen].min()),
        smallest_p_value=None if smallest_p is None else float(smallest_p[:][chosen].min()),
    )


def share_selected(masks: MaskStore, counts: Counts) -> float | None:
    """Of the experts in a control's masks, the share that the rule itself selects for the same batches. None: these are
    no masks of a rule that is to select other experts."""
    rule = stored_rule(masks)
    if not isinstance(rule, Control):
        return None
    settings, both = settings_of(masks), 0
    for step in counts.steps():
        itself = evidence_for(rule.counted_as, counts, settings, step, None)
        each = zip(itself, masks.masks[step.start : step.stop], strict=True)
        both += sum(int((rule.counted_as.select(batch) & mask_LE).sum()) for batch, mask_LE in each)
    return both / int(masks.signs_B3.sum())


def evidence_for(
    rule: Rule,
    counts: Counts,
    settings: StatisticsConfig,
    batches: range,
    population: Population | None,
    *,
    prefix: str = "",
) -> Iterator[Evidence]:
    """What the rule needs to select the experts of each of these batches in turn; keep only one. With `prefix`
    "prefill_", from that table instead of the counts.

    `population` may be None if the rule does not need one.
    """
    found = counts.of_batches(batches, tables=rule.needs & TABLES.keys(), prefix=prefix)
    return evidence_of_each(counts.index.of(batches), found, settings, seed_of(counts), population)
