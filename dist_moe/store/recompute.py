"""What follows from a store's prompt counts: rates and masks, computed anew; and a store's batches as results."""

from collections.abc import Collection

import numpy as np

from dist_moe.errors import UserError
from dist_moe.rules import RULES, Rule, from_facts
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.design import Kinship
from dist_moe.stats.evidence import evidence
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.settings import StatisticsConfig
from dist_moe.stats.table import RiskTable, risk_table
from dist_moe.store.contents import BatchResults, StorePlan
from dist_moe.store.layout import prompt_array, statistic_array
from dist_moe.store.read import MaskStore

RISK = frozenset({"a_safe_n", "a_unsafe_n", "risk_diff"})
"""Arrays that follow from the counts."""
MASKS = frozenset({"masks", "batch_num_unsafe_experts", "batch_mask_hashes"})
"""Arrays that follow from the risk and the selection rule."""


def stored_plan(store: MaskStore) -> StorePlan:
    """The plan that a store was written with."""
    prompts = store.planned_prompts
    return StorePlan(
        prompt_ids=tuple(prompts["id"]),
        unsafe_P=prompts["unsafe"].to_numpy(),
        batch_of_P=prompts["batch"].to_numpy(),
        batch_ids=store.batch_ids,
        categories=store.categories,
        num_experts=store.num_experts,
        experts_per_token=store.experts_per_token,
        selection_rule=store.selection_rule,
        counted_tokens=store.counted_tokens,
        layer_names=store.layer_names,
        provenance=store.provenance,
        statistics={name: _kind(store, statistic_array(name)) for name in store.statistic_names},
        tables={name: _kind(store, prompt_array(name)) for name in store.table_names},
        kinship=store.kinship,
        template_P=store.template_tokens,
    )


def _kind(store: MaskStore, array: str) -> tuple[str, int]:
    """NumPy type of a statistic or table, and 3 if it has one value an expert, else 1; asks for this array alone."""
    rows = store.files.array(array)
    return rows.dtype.name, 3 if len(rows.shape) > 2 else 1


def computable(tables: Collection[str]) -> frozenset[str]:
    """Selection rules that neither test nor draw, and look at nothing but the counts and these tables of one batch."""
    return frozenset(name for name, rule in RULES.items() if rule.needs <= set(tables))


def stored_counts(store: MaskStore, batches: range) -> RoutingCounts:
    """Of the prompts of some consecutive batches, with all tables."""
    return store.counts(slice(*store.starts_B1[[batches.start, batches.stop]].tolist()), tables=True)


def recomputed_risk(store: MaskStore, batches: range, counts: RoutingCounts) -> RiskTable:
    """Rates of some consecutive batches, from the counts of their prompts."""
    prompts = store.prompts.iloc[slice(*store.starts_B1[[batches.start, batches.stop]].tolist())]
    names = [f"batch {index} ({store.batch_ids[index][:12]})" for index in batches]
    batch_of_P = prompts["batch"].to_numpy() - batches.start
    return risk_table(counts, prompts["unsafe"].to_numpy(), batch_of_P, len(batches), names)


def recomputed_masks(
    counts: RoutingCounts, unsafe_P: np.ndarray, batch_of_P: np.ndarray, num_batches: int, rule: Rule
) -> ExpertMasks:
    """Masks from counts by the rule; a batch may get an empty one.

    Args:
        counts: of P prompts, in the order of their batches.
        unsafe_P: bool [P].
        batch_of_P: int [P], each in [0, num_batches).
        num_batches: B.
        rule: one of those that are `computable`.

    Raises:
        UserError: the rule needs more than counts.
    """
    if rule.name not in computable(counts.tables):
        raise UserError(f"masks by the rule {rule.name} cannot be computed from counts alone: run the analysis again")
    starts = np.searchsorted(batch_of_P, np.arange(num_batches + 1)).tolist()
    masks_BLE = np.zeros((num_batches, *counts.counts_PLE.shape[1:]), np.bool_)
    for batch, rows in enumerate(map(slice, starts[:-1], starts[1:])):
        of_batch = counts.of(rows)
        kinship = Kinship.none(batch_of_P[rows])
        found = evidence(of_batch, unsafe_P[rows], kinship, StatisticsConfig(), seed=0, batch=batch)
        masks_BLE[batch] = rule.select(found)
    return ExpertMasks(masks_BLE)


def masks_by(store: MaskStore, batches: range, rule: Rule, counts: RoutingCounts) -> ExpertMasks:
    """What the rule selects in some consecutive batches of a store, from `counts` of their prompts.

    Raises:
        UserError: the rule needs more than counts.
    """
    prompts = store.prompts.iloc[slice(*store.starts_B1[[batches.start, batches.stop]].tolist())]
    batch_of_P = prompts["batch"].to_numpy() - batches.start
    return recomputed_masks(counts, prompts["unsafe"].to_numpy(), batch_of_P, len(batches), rule)


def stored_results(store: MaskStore, batches: range, broken: Collection[str] = ()) -> BatchResults:
    """Some consecutive batches as they are stored; what belongs to `broken` arrays is computed anew."""
    rows = slice(batches.start, batches.stop)
    counts = stored_counts(store, batches)
    if RISK & set(broken):
        risk = recomputed_risk(store, batches, counts)
    else:
        risk = RiskTable(store.a_safe_n[rows], store.a_unsafe_n[rows])
    masks = (
        masks_by(store, batches, from_facts(store.selection_rule, str(store.path)), counts)
        if "masks" in broken
        else ExpertMasks(store.masks[rows])
    )
    statistics = {name: values[rows] for name, values in store.statistics.items()}
    return BatchResults(counts=counts, risk=risk, masks=masks, statistics=statistics)
