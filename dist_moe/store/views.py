"""Questions about a mask store, each answered by a `View`: some facts and some tables. Nothing is printed here."""

import difflib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dist_moe.errors import UserError
from dist_moe.risk.frames import expert_names, select_head
from dist_moe.risk.masks import ExpertMasks
from dist_moe.risk.names import expert_name
from dist_moe.risk.overlap import category_experts, expert_history, jaccard_matrix, shared_experts
from dist_moe.store.read import BatchInfo, MaskStore


@dataclass(frozen=True, slots=True)
class View:
    """An answer: named facts (JSON values), and tables by title, the main one first."""

    facts: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]


def find_batch(store: MaskStore, key: str) -> BatchInfo:
    """The batch with this index ("3") or id.

    Raises:
        UserError: there is none.
    """
    for batch in store.batches:
        if key in (str(batch.index), batch.id):
            return batch
    last = len(store.batches) - 1
    raise UserError(f"no batch {key!r} in {store.path}: expected an index from 0 to {last}, or a batch's id")


def summary(store: MaskStore) -> View:
    """How many unsafe experts each batch and each layer has, and where the store came from."""
    masks_BLE = store.masks[:]
    num_BL = masks_BLE.sum(axis=2)
    num_B = num_BL.sum(axis=1)
    union_LE = ExpertMasks(masks_BLE).union()
    none_BL = num_BL == 0
    below_k_BL = (num_BL > 0) & (num_BL < store.experts_per_token)
    batches = pd.DataFrame(
        {
            "batch": np.arange(len(num_B)),
            "id": store.batch_ids,
            "category": store.categories,
            "unsafe_experts": num_B,
            "layers_with_none": none_BL.sum(axis=1),
            "layers_below_k": below_k_BL.sum(axis=1),
        }
    )
    layers = pd.DataFrame(
        {
            "layer": np.arange(len(union_LE)),
            "module": store.layer_names,
            "union_experts": union_LE.sum(axis=1),
            "mean_experts": num_BL.mean(axis=0),
            "batches_with_none": none_BL.sum(axis=0),
            "batches_below_k": below_k_BL.sum(axis=0),
        }
    )
    facts = {
        "store": str(store.path),
        "dist_moe_version": store.dist_moe_version,
        "selection_rule": {"name": store.rule.name, "threshold": store.rule.threshold, "top_k": store.rule.top_k},
        "counted_tokens": store.counted_tokens,
        "prompts": len(store.prompts),
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
        "provenance": store.provenance,
    }
    return View(facts, {"batches": batches, "layers": layers})


def batch(store: MaskStore, key: str) -> View:
    """One batch's unsafe experts with their rates, riskiest first."""
    info = find_batch(store, key)
    frame = store.batch_table(info.index)
    mask_LE = store.masks[info.index]
    facts = {
        "batch": info.index,
        "id": info.id,
        "category": info.category,
        "unsafe_experts": info.num_unsafe_experts,
        "mask_hash": info.mask_hash,
    }
    selected = frame[mask_LE[frame["layer"], frame["expert"]]]
    return View(facts, {"unsafe experts": selected.reset_index(drop=True)})


def expert(store: MaskStore, layer: int, expert: int) -> View:
    """One expert's rates and whether it was selected, over all batches.

    Raises:
        UserError: the model has no such expert.
    """
    _, num_layers, num_experts = store.masks.shape
    if not (0 <= layer < num_layers and 0 <= expert < num_experts):
        raise UserError(
            f"no expert {expert_name(layer, expert)} in {store.path}: expected a layer from 0 to {num_layers - 1} and "
            f"an expert from 0 to {num_experts - 1}"
        )
    history = expert_history(
        store.masks[:, layer, expert],
        store.a_safe_n[:, layer, expert],
        store.a_unsafe_n[:, layer, expert],
        store.categories,
    )
    facts = {
        "expert": expert_name(layer, expert),
        "module": store.layer_names[layer],
        "batches_selected": int(history["selected"].sum()),
        "batches": len(history),
    }
    return View(facts, {"history": history})


def overlap(store: MaskStore) -> View:
    """Jaccard index of every two batches and every two categories, and the experts of several categories."""
    masks_BLE = store.masks[:]
    names = sorted(set(store.categories))
    category_B = np.array(store.categories, dtype=object)
    unions_CLE = np.stack([masks_BLE[category_B == name].any(axis=0) for name in names])
    by_batch = pd.DataFrame(jaccard_matrix(masks_BLE), columns=[str(index) for index in range(len(masks_BLE))])
    by_batch.insert(0, "batch", np.arange(len(masks_BLE)))
    by_batch.insert(1, "category", store.categories)
    jaccard_CC = jaccard_matrix(unions_CLE)
    pairs = list(itertools.combinations(range(len(names)), 2))
    by_category = pd.DataFrame(
        [(names[one], names[other], jaccard_CC[one, other]) for one, other in pairs],
        columns=["category", "other", "jaccard"],
    )
    shared = shared_experts(category_experts(masks_BLE, store.categories))
    facts = {"batches": len(masks_BLE), "categories": len(names), "experts_in_several_categories": len(shared)}
    tables = {"Jaccard, batches": by_batch, "Jaccard, categories": by_category, "experts in several categories": shared}
    return View(facts, tables)


def overlap_of_two(store: MaskStore, first: str, second: str) -> View:
    """What two batches share: every expert in either mask, riskiest in the first batch first."""
    one, other = find_batch(store, first), find_batch(store, second)
    masks_BLE = np.stack([store.masks[one.index], store.masks[other.index]])
    layers, experts = np.nonzero(masks_BLE.any(axis=0))
    risk_diffs = [store.risk_diff[info.index][layers, experts] for info in (one, other)]
    table = pd.DataFrame(
        {
            "layer": layers,
            "expert": experts,
            "Layer_Expert": expert_names(layers, experts),
            "in_first": masks_BLE[0, layers, experts],
            "in_second": masks_BLE[1, layers, experts],
            "risk_diff_first": risk_diffs[0],
            "risk_diff_second": risk_diffs[1],
        }
    ).sort_values("risk_diff_first", ascending=False, kind="stable", ignore_index=True)
    facts = {
        "first": one.name,
        "second": other.name,
        "jaccard": float(jaccard_matrix(masks_BLE)[0, 1]),
        "in_both": int(masks_BLE.all(axis=0).sum()),
        "only_in_first": int((masks_BLE[0] & ~masks_BLE[1]).sum()),
        "only_in_second": int((masks_BLE[1] & ~masks_BLE[0]).sum()),
    }
    return View(facts, {"experts": table})


def category(store: MaskStore, name: str) -> View:
    """Which experts answer for a category, in how many of its batches, and for which others as well.

    Raises:
        UserError: no batch is of this category.
    """
    if name not in store.categories:
        known = sorted(set(store.categories))
        (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise UserError(f"no category {name!r} in {store.path}: did you mean {nearest!r}?")
    by_category = category_experts(store.masks[:], store.categories)
    chosen = by_category["category"] == name
    others = by_category[~chosen].groupby(["layer", "expert"])["category"].agg(", ".join).rename("also_in")
    table = by_category[chosen].drop(columns="category").join(others, on=["layer", "expert"])
    batches = [info for info in store.batches if info.category == name]
    risk_diff_LE = np.mean([store.risk_diff[info.index] for info in batches], axis=0)
    table.insert(5, "mean_risk_diff", risk_diff_LE[table["layer"], table["expert"]])
    facts = {
        "category": name,
        "batches": [info.index for info in batches],
        "experts": len(table),
        "experts_in_every_batch": int((table["num_batches"] == len(batches)).sum()),
    }
    return View(facts, {"experts": table.fillna({"also_in": ""}).reset_index(drop=True)})


def aggregated(store: MaskStore) -> View:
    """The selection rule applied to the rates of all prompts, pooled, and to the mean of the batches' rates."""
    selected = store.global_unsafe_experts()
    mask_names = {expert_name(int(layer), int(expert)) for layer, expert in np.argwhere(store.union())}
    facts = {
        "unsafe_experts": len(selected),
        "in_no_batch": int((~selected["Layer_Expert"].isin(mask_names)).sum()),
    }
    by_mean = select_head(store.mean_of_batches, store.rule)
    return View(facts, {"unsafe experts, prompts pooled": selected, "unsafe experts, mean of batches": by_mean})


def check(store: MaskStore) -> View:
    """Every array compared with the digest that was written, whatever the store's size.

    Raises:
        UserError: the store is damaged.
    """
    store.check()
    return View({"store": str(store.path), "digest": store.digest, "intact": True}, {"arrays": store.arrays})
