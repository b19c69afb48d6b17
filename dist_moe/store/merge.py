"""Stores with parts of one analysis, joined to the store that one job would have written."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dist_moe.errors import UserError
from dist_moe.files import atomic_directory
from dist_moe.stats.design import joined
from dist_moe.store.contents import BatchResults, StorePlan, concatenate_results
from dist_moe.store.read import MaskStore
from dist_moe.store.recompute import stored_plan, stored_results
from dist_moe.store.write import StoreWriter

OF_THE_PART = {"format_version", "dist_moe_version", "part", "arms"}
OF_NEWER = {"num_experts", "statistics", "tables"}
"""Attributes that older stores do not have; they are compared by what they say of."""


def merge(stores: Sequence[MaskStore], out: Path) -> None:
    """Write the batches of all stores as one.

    Stores that say which part of a plan they hold are put in its order and must be all of it; others follow one
    another as given.

    Raises:
        UserError: `out` exists, or the stores differ in what must be the same, share a batch, or leave one out.
    """
    for store in stores[1:]:
        _require_same(stores[0], store)
    stores = _in_order(stores)
    _require_disjoint(stores)
    plans = [stored_plan(store) for store in stores]
    with atomic_directory(out) as directory:
        writer = StoreWriter(directory, _joined(plans), sync=False)
        for batches in writer.missing:
            writer.write(batches, _gathered(stores, plans, batches))
        writer.seal()


def _require_same(one: MaskStore, other: MaskStore) -> None:
    for name in sorted((one.attributes | other.attributes).keys() - OF_THE_PART - OF_NEWER):
        here, there = one.attributes.get(name), other.attributes.get(name)
        if isinstance(here, dict) and isinstance(there, dict) and here != there:
            key = next(key for key in sorted(here | there) if here.get(key) != there.get(key))
            name, here, there = f"{name}.{key}", here.get(key), there.get(key)
        if here != there:
            raise UserError(f"{one.path} and {other.path} are not of one analysis: {name} is {here!r} and {there!r}")
    contents = [
        (
            store.num_experts,
            set(store.statistics),
            set(store.tables),
            store.kinship is None,
            store.template_tokens is None,
        )
        for store in (one, other)
    ]
    if contents[0] != contents[1]:
        raise UserError(
            f"{one.path} and {other.path} are not of one analysis: other experts, statistics or tables, or only one "
            "says which rows are of one prompt"
        )


def _in_order(stores: Sequence[MaskStore]) -> Sequence[MaskStore]:
    parts = [(store.part, store) for store in stores if store.part is not None]
    if not parts:
        return stores
    if len(parts) < len(stores):
        whole = next(store for store in stores if store.part is None)
        raise UserError(f"{whole.path} does not say which part of a plan it is, and other stores do: merge only parts")
    parts.sort(key=lambda part: part[0].first_batch)
    total, end = parts[0][0].num_batches, 0
    for part, store in parts:
        if part.num_batches != total:
            raise UserError(f"{store.path} is part of a plan of {part.num_batches} batches, not of {total}")
        if part.first_batch < end:
            raise UserError(f"{store.path} begins with batch {part.first_batch}, which another part has too")
        if part.first_batch > end:
            raise UserError(f"batches {end} to {part.first_batch - 1} of {total} are in none of the stores")
        end += len(store.batch_ids)
    if end < total:
        raise UserError(f"batches {end} to {total - 1} of {total} are in none of the stores")
    return [store for _, store in parts]


def _require_disjoint(stores: Sequence[MaskStore]) -> None:
    seen: dict[str, MaskStore] = {}
    for store in stores:
        for batch_id in store.batch_ids:
            if batch_id in seen and seen[batch_id] is not store:
                raise UserError(f"batch {batch_id} is in {seen[batch_id].path} and in {store.path}: merge it once")
            seen[batch_id] = store


def _joined(plans: Sequence[StorePlan]) -> StorePlan:
    first = np.cumsum([0, *(len(plan.batch_ids) for plan in plans)])
    batch_of_P = np.concatenate([plan.batch_of_P + start for plan, start in zip(plans, first, strict=False)])
    kin = [plan.kinship for plan in plans if plan.kinship is not None]
    template = [plan.template_P for plan in plans if plan.template_P is not None]
    return replace(
        plans[0],
        prompt_ids=tuple(prompt for plan in plans for prompt in plan.prompt_ids),
        unsafe_P=np.concatenate([plan.unsafe_P for plan in plans]),
        batch_of_P=batch_of_P,
        batch_ids=tuple(batch for plan in plans for batch in plan.batch_ids),
        categories=tuple(category for plan in plans for category in plan.categories),
        kinship=joined(kin, batch_of_P) if kin else None,
        template_P=np.concatenate(template) if template else None,
        part=None,
    )


def _gathered(stores: Sequence[MaskStore], plans: Sequence[StorePlan], batches: range) -> BatchResults:
    parts, first = [], 0
    for store, plan in zip(stores, plans, strict=True):
        here = range(max(batches.start - first, 0), min(batches.stop - first, len(plan.batch_ids)))
        if here:
            parts.append(stored_results(store, here))
        first += len(plan.batch_ids)
    return concatenate_results(parts)
