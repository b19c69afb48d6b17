"""Views of how many experts batches and layers have, how much of the routing a mask leaves, and how the union grows.

They take no pandas, which takes longer to import than they take.
"""

from typing import Any

import numpy as np

from dist_moe.report.views.view import View
from dist_moe.selection.stored import stored_rule
from dist_moe.stats.masks import ExpertMasks
from dist_moe.store.read import MaskStore


def summary(store: MaskStore) -> View:
    """Number of unsafe experts of each batch and each layer, and the origin of the store."""
    masks_BLE = store.masks[:]
    num_BL = masks_BLE.sum(axis=2)
    union_LE = ExpertMasks(masks_BLE).union()
    none_BL = num_BL == 0
    below_k_BL = (num_BL > 0) & (num_BL < store.experts_per_token)
    batches = {
        "batch": np.arange(len(num_BL)),
        "id": store.batch_ids,
        "category": store.categories,
        "unsafe_experts": num_BL.sum(axis=1),
        "layers_with_none": none_BL.sum(axis=1),
        "layers_below_k": below_k_BL.sum(axis=1),
    }
    layers = {
        "layer": np.arange(len(union_LE)),
        "module": store.layer_names,
        "union_experts": union_LE.sum(axis=1),
        "mean_experts": num_BL.mean(axis=0),
        "batches_with_none": none_BL.sum(axis=0),
        "batches_below_k": below_k_BL.sum(axis=0),
    }
    return View(_facts(store, num_BL.sum(axis=1), union_LE), {"batches": batches, "layers": layers})


def _facts(store: MaskStore, num_B: np.ndarray, union_LE: np.ndarray) -> dict[str, Any]:
    facts = {
        "store": str(store.path),
        "dist_moe_version": store.dist_moe_version,
        "selection_rule": stored_rule(store).facts,
        "counted_tokens": store.counted_tokens,
        "prompts": int(store.arms_B2.sum()),
        "batches": len(num_B),
        "moe_layers": union_LE.shape[0],
        "experts_per_layer": union_LE.shape[1],
        "experts_per_token": store.experts_per_token,
        "min_experts_per_batch": int(num_B.min()),
        "mean_experts_per_batch": float(num_B.mean()),
        "max_experts_per_batch": int(num_B.max()),
        "batches_with_none": int((num_B == 0).sum()),
        "union_experts": int(union_LE.sum()),
        "all_experts": union_LE.size,
        "revision": store.revision,
        "counts": store.counts_digest,
        "provenance": store.provenance,
    }
    if store.has_counts:
        facts |= {"arms": store.counts.attributes.get("arms", {}), "warnings": list(store.counts.warnings)}
    return facts


def layers(store: MaskStore) -> View:
    """Each layer's experts over all batches, and what mode `route` with `fill: shrink` leaves of its routing.

    A layer without a selected expert is not restricted, so all its slots remain. `slots_surviving` is the fraction of a
    token's k slots for which there is an allowed expert; `unsafe_routing_kept` is the fraction of the unsafe prompts'
    own routing that went to allowed experts.
    """
    masks_BLE = store.masks[:]
    num_BL = masks_BLE.sum(axis=2)
    k = store.experts_per_token
    slots_BL = np.where(num_BL == 0, 1.0, np.minimum(num_BL, k) / k)
    kept_BL = np.ones(num_BL.shape)
    for batches, rates in store.counts.risks(range(len(masks_BLE))):
        some = slice(batches.start, batches.stop)
        kept_BL[some] = (rates.a_unsafe_n_BLE * masks_BLE[some]).sum(axis=2) / k
    kept_BL = np.where(num_BL == 0, 1.0, kept_BL)
    table = {
        "layer": np.arange(len(store.layer_names)),
        "module": store.layer_names,
        "min_experts": num_BL.min(axis=0),
        "median_experts": np.median(num_BL, axis=0),
        "max_experts": num_BL.max(axis=0),
        "union_experts": masks_BLE.any(axis=0).sum(axis=1),
        "batches_with_none": (num_BL == 0).sum(axis=0),
        "batches_below_k": ((num_BL > 0) & (num_BL < k)).sum(axis=0),
        "slots_surviving": slots_BL.mean(axis=0),
        "unsafe_routing_kept": kept_BL.mean(axis=0),
    }
    sizes, counts = np.unique(num_BL, return_counts=True)
    distribution = {"experts": sizes, "layers_of_batches": counts, "share": counts / num_BL.size}
    facts = {
        "batches": len(masks_BLE),
        "moe_layers": len(store.layer_names),
        "experts_per_token": k,
        "share_of_layers_with_none": float((num_BL == 0).mean()),
        "share_of_layers_below_k": float(((num_BL > 0) & (num_BL < k)).mean()),
        "slots_surviving": float(slots_BL.mean()),
        "unsafe_routing_kept": float(kept_BL.mean()),
    }
    return View(facts, {"layers": table, "experts of a layer in a batch": distribution})


def growth(store: MaskStore) -> View:
    """How the union grows batch by batch, and how much of each batch was new."""
    seen_LE = np.zeros(store.masks.shape[1:], np.bool_)
    new_B, union_B = [], []
    for start, stop in store.masks.blocks(0, len(store.masks)):
        for mask_LE in store.masks[start:stop]:
            new_B.append(int((mask_LE & ~seen_LE).sum()))
            seen_LE |= mask_LE
            union_B.append(int(seen_LE.sum()))
    table = {
        "batch": np.arange(len(new_B)),
        "category": store.categories,
        "new_experts": new_B,
        "union_experts": union_B,
        "union_share": np.array(union_B) / seen_LE.size,
    }
    facts = {
        "batches": len(new_B),
        "union_experts": union_B[-1],
        "all_experts": seen_LE.size,
        "batches_that_add_none": new_B.count(0),
    }
    return View(facts, {"union growth": table})
