"""Views of how similar masks are, and of how the union grows with the number of batches."""

import itertools

import numpy as np
import pandas as pd

from dist_moe.errors import UserError
from dist_moe.report.views.view import View, find_batch
from dist_moe.stats.frames import expert_names
from dist_moe.stats.overlap import category_experts, jaccard_matrix, shared_experts
from dist_moe.store.read import MaskStore

MOST_BATCHES = 2000


def overlap(store: MaskStore) -> View:
    """Jaccard index of all pairs of batches and of categories, and the experts that several categories share."""
    masks_BLE = store.masks[:]
    names = sorted(set(store.categories))
    category_B = np.array(store.categories, dtype=object)
    unions_CLE = np.stack([masks_BLE[category_B == name].any(axis=0) for name in names])
    if len(masks_BLE) > MOST_BATCHES:
        raise UserError(
            f"{store.path} has {len(masks_BLE)} batches, but a table of all pairs has at most {MOST_BATCHES}: "
            "compare two with overlap A B, or look at categories"
        )
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
    """Experts in the mask of either of two batches, largest risk_diff in the first batch first."""
    one, other = find_batch(store, first), find_batch(store, second)
    masks_BLE = np.stack([store.masks[one.index], store.masks[other.index]])
    layers, experts = np.nonzero(masks_BLE.any(axis=0))
    risk_diffs = [store.counts.risk_diff[info.index][layers, experts] for info in (one, other)]
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


def categories(store: MaskStore) -> View:
    """For each category: number of batches and experts, experts of no other category, and similarity of its batches."""
    masks_BLE = store.masks[:]
    by_category = category_experts(masks_BLE, store.categories)
    num_categories = by_category.groupby(["layer", "expert"])["category"].transform("size")
    own = by_category[num_categories == 1].groupby("category").size()
    rows = []
    for name in sorted(set(store.categories)):
        of_category_BLE = masks_BLE[np.array([category == name for category in store.categories])]
        experts = by_category[by_category["category"] == name]
        num_batches = len(of_category_BLE)
        jaccard_BB = jaccard_matrix(of_category_BLE[:MOST_BATCHES])
        pairs = jaccard_BB[np.triu_indices(len(jaccard_BB), 1)]
        rows.append(
            {
                "category": name,
                "batches": num_batches,
                "mean_experts_per_batch": of_category_BLE.sum(axis=(1, 2)).mean(),
                "union_experts": len(experts),
                "in_every_batch": int((experts["num_batches"] == num_batches).sum()),
                "in_no_other_category": int(own.get(name, 0)),
                "mean_jaccard_within": pairs.mean() if len(pairs) else None,
            }
        )
    shared = shared_experts(by_category)
    facts = {"categories": len(rows), "experts_in_several_categories": len(shared)}
    return View(facts, {"categories": pd.DataFrame(rows), "experts in several categories": shared})
