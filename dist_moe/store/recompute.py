"""What follows from a store's prompt counts: rates and masks, computed anew; and a store's batches as results."""

from collections.abc import Collection

import numpy as np

from dist_moe.errors import UserError
from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.masks import ExpertMasks
from dist_moe.risk.select import SelectionRule, unsafe_experts
from dist_moe.risk.table import RiskTable, risk_table
from dist_moe.store.contents import BatchResults, StorePlan
from dist_moe.store.layout import decode_texts
from dist_moe.store.read import MaskStore

RISK = frozenset({"a_safe_n", "a_unsafe_n", "risk_diff"})
"""Arrays that follow from the counts."""
MASKS = frozenset({"masks", "batch_num_unsafe_experts", "batch_mask_hashes"})
"""Arrays that follow from the risk and the selection rule."""
FROM_RISK = frozenset({"threshold_top_k"})
"""Selection rules that need risk_diff only."""


def stored_plan(store: MaskStore) -> StorePlan:
    """The plan that a store was written with."""
    part = store.attributes.get("part")
    return StorePlan(
        prompt_ids=decode_texts(store.files.array("prompt_ids")[:]),
        unsafe_P=store.files.array("prompt_unsafe")[:],
        batch_of_P=store.files.array("prompt_batch")[:],
        batch_ids=store.batch_ids,
        categories=store.categories,
        num_experts=store.num_experts,
        experts_per_token=store.experts_per_token,
        rule=store.rule,
        counted_tokens=store.counted_tokens,
        layer_names=store.layer_names,
        provenance=store.provenance,
        statistics={name: (rows.dtype.name, len(rows.shape)) for name, rows in store.statistics.items()},
        part=None if part is None else (part["first_batch"], part["num_batches"]),
    )


def stored_counts(store: MaskStore, batches: range) -> RoutingCounts:
    """Of the prompts of some consecutive batches."""
    prompts = slice(*store.starts_B1[[batches.start, batches.stop]].tolist())
    tokens_P = store.prompts["tokens"].to_numpy()[prompts]
    return RoutingCounts(store.prompt_counts[prompts].astype(np.int64), tokens_P, store.experts_per_token)


def recomputed_risk(store: MaskStore, batches: range, counts: RoutingCounts) -> RiskTable:
    """Rates of some consecutive batches, from the counts of their prompts."""
    prompts = store.prompts.iloc[slice(*store.starts_B1[[batches.start, batches.stop]].tolist())]
    names = [f"batch {index} ({store.batch_ids[index][:12]})" for index in batches]
    batch_of_P = prompts["batch"].to_numpy() - batches.start
    return risk_table(counts, prompts["unsafe"].to_numpy(), batch_of_P, len(batches), names)


def recomputed_masks(risk_diff_BLE: np.ndarray, rule: SelectionRule) -> ExpertMasks:
    """Masks from risk_diff by the rule; a batch may get an empty one.

    Raises:
        UserError: the rule needs more than risk_diff.
    """
    if rule.name not in FROM_RISK:
        raise UserError(f"masks by the rule {rule.name} cannot be computed from counts alone: run the analysis again")
    masks_BLE = np.zeros(risk_diff_BLE.shape, np.bool_)
    for mask_LE, risk_diff_LE in zip(masks_BLE, risk_diff_BLE, strict=True):
        for layer, expert in unsafe_experts(risk_diff_LE, rule.threshold, rule.top_k):
            mask_LE[layer, expert] = True
    return ExpertMasks(masks_BLE)


def stored_results(store: MaskStore, batches: range, broken: Collection[str] = ()) -> BatchResults:
    """Some consecutive batches as they are stored; what belongs to `broken` arrays is computed anew."""
    rows = slice(batches.start, batches.stop)
    counts = stored_counts(store, batches)
    if RISK & set(broken):
        risk = recomputed_risk(store, batches, counts)
    else:
        risk = RiskTable(store.a_safe_n[rows], store.a_unsafe_n[rows])
    masks = (
        ExpertMasks(store.masks[rows]) if "masks" not in broken else recomputed_masks(risk.risk_diff_BLE, store.rule)
    )
    statistics = {name: values[rows] for name, values in store.statistics.items()}
    return BatchResults(counts=counts, risk=risk, masks=masks, statistics=statistics)
