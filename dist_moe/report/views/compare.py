"""Views that compare two stores, and a store with its digests."""

from typing import Any

import numpy as np
import pandas as pd

from dist_moe.errors import UserError
from dist_moe.report.views.render import flat_facts
from dist_moe.report.views.view import View
from dist_moe.stats.frames import expert_names
from dist_moe.store.counts import Counts
from dist_moe.store.read import MaskStore

BATCH_COLUMNS = ["batch", "id", "category", "in_both", "only_in_first", "only_in_second", "jaccard"]
MEASURE_COLUMNS = ["batch", "id", "what", "prompts", "largest_difference"]
EXPERT_COLUMNS = ["batch", "layer", "expert", "Layer_Expert", "in_first", "in_second"]


def diff(one: MaskStore, other: MaskStore) -> View:
    """How two stores differ: attributes, batches, experts, measurements. Batches with the same id are compared.

    Measurements are compared only if the masks were selected from different counts.

    Raises:
        UserError: the stores are of models with other layers or experts, or counts that differ are missing.
    """
    if one.masks.shape[1:] != other.masks.shape[1:]:
        sizes = [" x ".join(map(str, store.masks.shape[1:])) for store in (one, other)]
        raise UserError(
            f"{one.path} has {sizes[0]} experts and {other.path} {sizes[1]}: masks of two models have nothing in common"
        )
    facts = differing_facts(one, other)
    places = {batch_id: index for index, batch_id in enumerate(other.batch_ids)}
    shared = [(index, places[batch_id]) for index, batch_id in enumerate(one.batch_ids) if batch_id in places]
    batches, experts, measures = [], [], []
    same_counts = one.counts_digest == other.counts_digest
    for here, there in shared:
        line, table = difference(one, here, one.masks[here], other.masks[there])
        batches.append(line)
        experts.append(table)
        measures += [] if same_counts else measured_differences(one.counts, here, other.counts, there)
    by_batch = pd.DataFrame(batches, columns=BATCH_COLUMNS)
    by_expert = pd.concat(experts, ignore_index=True) if experts else pd.DataFrame(columns=EXPERT_COLUMNS)
    only = batches_in_one(one, other)
    summary = {
        "first": str(one.path),
        "second": str(other.path),
        "same": one.digest == other.digest or not (len(facts) or len(only) or len(by_expert) or measures),
        "facts_that_differ": len(facts),
        "batches_in_both": len(shared),
        "batches_in_one": len(only),
        "batches_with_other_masks": int((by_batch["jaccard"] < 1).sum()),
        "experts_that_differ": len(by_expert),
        "batches_measured_otherwise": len({line[0] for line in measures}),
        "measured_otherwise": ", ".join(dict.fromkeys(line[2] for line in measures)) or None,
    }
    tables = {
        "batches": by_batch,
        "experts that differ": by_expert,
        "measured otherwise": pd.DataFrame(measures, columns=MEASURE_COLUMNS),
        "facts that differ": facts,
        "batches in one store only": only,
    }
    return View(summary, tables)


def differing_facts(one: MaskStore, other: MaskStore) -> pd.DataFrame:
    """Attributes that differ, a line each: fact, first, second."""
    facts = [flat_facts(store.attributes) for store in (one, other)]
    lines = [(name, *(of_store.get(name) for of_store in facts)) for name in sorted(facts[0].keys() | facts[1].keys())]
    differing = [line for line in lines if line[1] != line[2]]
    return pd.DataFrame(differing, columns=["fact", "first", "second"]).astype(object)


def batches_in_one(one: MaskStore, other: MaskStore) -> pd.DataFrame:
    """Batches that only one of the stores has, a line each: store, id, category."""
    lines = [
        (name, batch_id, category)
        for name, store, others in (("first", one, set(other.batch_ids)), ("second", other, set(one.batch_ids)))
        for batch_id, category in zip(store.batch_ids, store.categories, strict=True)
        if batch_id not in others
    ]
    return pd.DataFrame(lines, columns=["store", "id", "category"])


def check(store: MaskStore) -> View:
    """Compare every array with its digest.

    Raises:
        UserError: the store is damaged.
    """
    store.check()
    return View({"store": str(store.path), "digest": store.digest, "intact": True}, {"arrays": store.arrays})


def difference(
    store: MaskStore, index: int, mask_LE: np.ndarray, other_LE: np.ndarray
) -> tuple[tuple[Any, ...], pd.DataFrame]:
    layers, experts = np.nonzero(mask_LE != other_LE)
    table = pd.DataFrame(
        {
            "batch": np.full(len(layers), index),
            "layer": layers,
            "expert": experts,
            "Layer_Expert": expert_names(layers, experts),
            "in_first": mask_LE[layers, experts],
            "in_second": other_LE[layers, experts],
        }
    )
    counts = [int((a & b).sum()) for a, b in ((mask_LE, other_LE), (mask_LE, ~other_LE), (~mask_LE, other_LE))]
    either = sum(counts)
    # Of two empty masks too: here it says how alike they are.
    jaccard = counts[0] / either if either else 1.0
    return (index, store.batch_ids[index], store.categories[index], *counts, jaccard), table


def measured_differences(
    one: Counts, here: int, other: Counts, there: int
) -> list[tuple[int, str, str, int, float | None]]:
    """Measurements of a batch's prompts that differ in two stores: counts, numbers of tokens, gates, ...

    A row has the batch, what differs, in how many prompts, and by how much at most (None if only one store has it).
    """
    rows, rows_there = one.index.rows(here), other.index.rows(there)
    of_one, of_other = (
        {"counts": store.prompt_counts, "tokens": store.prompt_tokens, **store.tables} for store in (one, other)
    )
    lines: list[tuple[int, str, str, int, float | None]] = []
    for name in dict.fromkeys((*of_one, *of_other)):
        if name not in of_one or name not in of_other:
            lines.append((here, one.batch_ids[here], name, rows.stop - rows.start, None))
            continue
        a, b = of_one[name][rows].astype(np.float64), of_other[name][rows_there].astype(np.float64)
        apart = np.abs(a - b).reshape(len(a), -1).max(axis=1)
        if apart.any():
            lines.append((here, one.batch_ids[here], name, int((apart > 0).sum()), float(apart.max())))
    return lines
