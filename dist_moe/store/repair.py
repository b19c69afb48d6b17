"""What can be restored of a damaged store, as a new store beside it.

Counts are the source of everything but themselves: rates, masks and their hashes are computed anew. Metadata and the
lists of digests follow from the plan. What is restored is proved by the digests of the damaged store where the same
version of this package wrote it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numcodecs.zstd import Zstd

from dist_moe.errors import UserError
from dist_moe.files import atomic_directory
from dist_moe.store.arrays import result_specs
from dist_moe.store.files import ADDED, Damage
from dist_moe.store.layout import SUMS, sha256, sums_text
from dist_moe.store.read import MaskStore
from dist_moe.store.recompute import MASKS, RISK, stored_plan, stored_results
from dist_moe.store.write import StoreWriter
from dist_moe.store.zarr_arrays import METADATA, array_metadata, plain

PLAN_TYPES = {
    "prompt_ids": np.uint8,
    "prompt_unsafe": np.bool_,
    "prompt_batch": np.int32,
    "batch_ids": np.uint8,
    "batch_categories": np.uint8,
    "prompt_clusters": np.uint64,
    "prompt_pairs": np.uint64,
    "prompt_template_tokens": np.int32,
}


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did."""

    damage: tuple[Damage, ...]
    recomputed: tuple[str, ...]
    """Arrays that were computed from the counts."""
    exact: bool
    """All digests are those of the store before it was damaged."""


def repair(store: MaskStore, out: Path) -> Repaired:
    """Write a whole store to `out`; the damaged one stays as it is.

    Raises:
        UserError: `out` exists, or something is lost for good; the message says what.
    """
    damage = tuple(store.damage())
    broken = _broken(store, damage)
    lost = sorted(broken - RISK - MASKS)
    if lost:
        raise UserError(
            f"{store.path} cannot be repaired: {', '.join(lost)} cannot be computed from the rest; restore it from "
            "a copy, or run the analysis again"
        )
    if not broken:
        store.check_plan()
    with atomic_directory(out) as directory:
        writer = StoreWriter(directory, stored_plan(store), sync=False)
        for batches in writer.missing:
            writer.write(batches, stored_results(store, batches, broken))
        writer.seal()
    return Repaired(damage, tuple(sorted(broken)), MaskStore.open(out).digest == store.digest)


def _broken(store: MaskStore, damage: tuple[Damage, ...]) -> set[str]:
    """Arrays that lost a file for good; lists and metadata are put back first, as they follow from what is left."""
    files = store.files
    names = {each.array for each in damage}
    for name in sorted(names):
        keys = (key for key in files.source.files(name) if not key.endswith(SUMS))
        found = {key.removeprefix(f"{name}/"): sha256(files.source.read(key) or b"") for key in keys}
        if files.damage(name)[0].file == SUMS:
            files.restore(name, SUMS, sums_text(found))
    left = [each for name in names for each in files.damage(name) if each.how != ADDED]
    # Those of the plan come first, as the metadata of the others follow from it.
    left.sort(key=lambda each: each.array not in PLAN_TYPES)
    return {each.array for each in left if not (each.file == METADATA and _restored(store, each.array))}


def _restored(store: MaskStore, name: str) -> bool:
    if name in PLAN_TYPES:
        dtype = np.dtype(PLAN_TYPES[name])
        num_bytes = len(Zstd().decode(store.files.read(name, "c/0")))
        spec = plain(dtype, (num_bytes // dtype.itemsize,))
    else:
        spec = result_specs(stored_plan(store))[name]
    return store.files.restore(name, METADATA, array_metadata(spec))
