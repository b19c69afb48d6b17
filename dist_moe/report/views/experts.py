"""Views of experts: those of a batch or a category, those over all prompts, and one expert in all batches."""

import difflib

import numpy as np

from dist_moe.errors import UserError
from dist_moe.report.views.view import View, find_batch
from dist_moe.rules.threshold_top_k import ThresholdTopK
from dist_moe.selection.stored import stored_rule
from dist_moe.selection.structure import overall
from dist_moe.stats.frames import select_head
from dist_moe.stats.names import expert_name
from dist_moe.stats.overlap import category_experts, expert_history
from dist_moe.store.read import MaskStore


def batch(store: MaskStore, key: str) -> View:
    """One batch's unsafe experts with their rates, largest risk_diff first."""
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
    """One expert in all batches: its rates, and whether it was selected.

    Raises:
        UserError: the model has no such expert.
    """
    _, num_layers, num_experts = store.masks.shape
    if not (0 <= layer < num_layers and 0 <= expert < num_experts):
        raise UserError(
            f"no expert {expert_name(layer, expert)} in {store.path}: expected a layer from 0 to {num_layers - 1} and "
            f"an expert from 0 to {num_experts - 1}"
        )
    selected_B, rates_2B = store.masks[:, layer, expert], np.empty((2, len(store.masks)))
    for batches, table in store.counts.risks(range(len(selected_B))):
        for rates_B, rates_BLE in zip(rates_2B, (table.a_safe_n_BLE, table.a_unsafe_n_BLE), strict=True):
            rates_B[batches.start : batches.stop] = rates_BLE[:, layer, expert]
    history = expert_history(selected_B, rates_2B[0], rates_2B[1], store.categories)
    facts = {
        "expert": expert_name(layer, expert),
        "module": store.layer_names[layer],
        "batches_selected": int(history["selected"].sum()),
        "batches": len(history),
    }
    return View(facts, {"history": history})


def category(store: MaskStore, name: str) -> View:
    """The experts of a category: in how many of its batches each is selected, and in which other categories.

    Raises:
        UserError: no batch has this category.
    """
    if name not in store.categories:
        known = sorted(set(store.categories))
        (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise UserError(f"no category {name!r} in {store.path}: did you mean {nearest!r}?")
    by_category = category_experts(store.masks[:], store.categories)
    chosen = by_category["category"] == name
    others = by_category[~chosen].groupby(["layer", "expert"])["category"].agg(", ".join).rename("also_in")
    table = by_category[chosen].drop(columns="category").join(others, on=["layer", "expert"])
    batches = [index for index, of_batch in enumerate(store.categories) if of_batch == name]
    risk_diff_LE = np.zeros(store.masks.shape[1:])
    for block, rates in store.counts.risks(range(batches[0], batches[-1] + 1)):
        for diff_LE, batch in zip(rates.risk_diff_BLE, block, strict=True):
            if store.categories[batch] == name:
                risk_diff_LE += diff_LE
    risk_diff_LE /= len(batches)
    table.insert(5, "mean_risk_diff", risk_diff_LE[table["layer"], table["expert"]])
    facts = {
        "category": name,
        "batches": batches,
        "experts": len(table),
        "experts_in_every_batch": int((table["num_batches"] == len(batches)).sum()),
    }
    return View(facts, {"experts": table.fillna({"also_in": ""}).reset_index(drop=True)})


def aggregated(store: MaskStore) -> View:
    """What the selection rule selects from the rates of all prompts pooled, and from the mean of the batches' rates."""
    selected = overall(store)
    mask_names = {expert_name(int(layer), int(expert)) for layer, expert in np.argwhere(store.union())}
    facts = {
        "unsafe_experts": len(selected),
        "in_no_batch": int((~selected["Layer_Expert"].isin(mask_names)).sum()),
    }
    rule = stored_rule(store).like(ThresholdTopK)
    by_mean = select_head(store.counts.mean_of_batches, rule.threshold, rule.top_k)
    return View(facts, {"unsafe experts, prompts pooled": selected, "unsafe experts, mean of batches": by_mean})
