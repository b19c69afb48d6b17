"""Views that compare two stores, and a store with its digests."""

from collections.abc import Iterator
from itertools import pairwise

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
BATCHES_AT_ONCE = 64
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
    batches, experts, measures = [], [], []
    same_counts = one.counts_digest == other.counts_digest
    for here, there in shared_batches(one, other):
        of_batches, of_experts = differences(one, here, one.masks[as_slice(here)], other.masks[as_slice(there)])
        batches.append(of_batches)
        experts.append(of_experts)
        measures += [] if same_counts else measured_differences(one.counts, here, other.counts, there)
    by_batch = pd.concat(batches, ignore_index=True) if batches else pd.DataFrame(columns=BATCH_COLUMNS)
    by_expert = pd.concat(experts, ignore_index=True) if experts else pd.DataFrame(columns=EXPERT_COLUMNS)
    only = batches_in_one(one, other)
    summary = {
        "first": str(one.path),
        "second": str(other.path),
        "same": one.digest == other.digest or not (len(facts) or len(only) or len(by_expert) or measures),
        "facts_that_differ": len(facts),
        "batches_in_both": len(by_batch),
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


def shared_batches(one: MaskStore, other: MaskStore) -> Iterator[tuple[range, range]]:
    """The batches that both stores have, as the numbers of some consecutive ones in each; of one file of each store."""
    places = {batch_id: index for index, batch_id in enumerate(other.batch_ids)}
    pairs = [(index, places[batch_id]) for index, batch_id in enumerate(one.batch_ids) if batch_id in places]
    ends = [{stop for _, stop in store.masks.slabs(0, len(store.masks))} for store in (one, other)]
    first = 0
    for number, (before, pair) in enumerate(pairwise([*pairs, (-1, -1)]), 1):
        follows = pair == (before[0] + 1, before[1] + 1)
        in_file = not any(place in cut for place, cut in zip(pair, ends, strict=True))
        if follows and in_file and number - first < BATCHES_AT_ONCE:
            continue
        here, there = (range(start, start + number - first) for start in pairs[first])
        yield here, there
        first = number


def as_slice(batches: range) -> slice:
    return slice(batches.start, batches.stop)


def differences(
    store: MaskStore, batches: range, masks_BLE: np.ndarray, others_BLE: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """How other masks of consecutive batches of a store differ: a line for each batch, and one for each expert that is
    in one of its two masks only."""
    places, layers, experts = np.nonzero(masks_BLE != others_BLE)
    of_experts = pd.DataFrame(
        {
            "batch": batches.start + places,
            "layer": layers,
            "expert": experts,
            "Layer_Expert": expert_names(layers, experts),
            "in_first": masks_BLE[places, layers, experts],
            "in_second": others_BLE[places, layers, experts],
        }
    )
    both_B = (masks_BLE & others_BLE).sum(axis=(1, 2))
    only_B2 = np.stack([masks_BLE.sum(axis=(1, 2)), others_BLE.sum(axis=(1, 2))], axis=1) - both_B[:, None]
    either_B = both_B + only_B2.sum(axis=1)
    of_batches = pd.DataFrame(
        {
            "batch": np.arange(batches.start, batches.stop),
            "id": store.batch_ids[as_slice(batches)],
            "category": store.categories[as_slice(batches)],
            "in_both": both_B,
            "only_in_first": only_B2[:, 0],
            "only_in_second": only_B2[:, 1],
            # 1 of two empty masks too: here it says how alike they are.
            "jaccard": np.divide(both_B, either_B, out=np.ones(len(both_B)), where=either_B > 0),
        }
    )
    return of_batches, of_experts


def measured_differences(
    one: Counts, here: range, other: Counts, there: range
) -> list[tuple[int, str, str, int, float | None]]:
    """Measurements of the prompts of batches that differ in two stores: counts, numbers of tokens, gates, ...

    A row has the batch, what differs, in how many prompts, and by how much at most (None if only one store has it).
    """
    of_one, of_other = (
        {"counts": store.prompt_counts, "tokens": store.prompt_tokens, **store.tables} for store in (one, other)
    )
    lines: dict[int, list[tuple[int, str, str, int, float | None]]] = {batch: [] for batch in here}
    sizes_B = one.index.sizes_B[as_slice(here)]
    starts_B = np.cumsum(sizes_B) - sizes_B
    for name in dict.fromkeys((*of_one, *of_other)):
        if name not in of_one or name not in of_other:
            for batch, size in zip(here, sizes_B.tolist(), strict=True):
                lines[batch].append((batch, one.batch_ids[batch], name, size, None))
            continue
        a, b = of_one[name][one.index.rows(here)], of_other[name][other.index.rows(there)]
        apart_PX = np.subtract(a, b, dtype=np.float64).reshape(len(a), -1)
        apart_P = np.maximum(apart_PX.max(axis=1), -apart_PX.min(axis=1))
        largest_B, number_B = np.maximum.reduceat(apart_P, starts_B), np.add.reduceat(apart_P > 0, starts_B, dtype=int)
        for place in np.flatnonzero(largest_B).tolist():
            batch = here[place]
            lines[batch].append((batch, one.batch_ids[batch], name, int(number_B[place]), float(largest_B[place])))
    return [line for of_batch in lines.values() for line in of_batch]
