"""What a mask store promises of each batch: the monitor's own knowledge of what a step may do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dist_moe.stats.masks import mask_hash
from dist_moe.store.read import MaskStore


@dataclass(frozen=True, slots=True)
class Promise:
    """One batch: its mask, bool [L, E], the mask's hash, and how many rows it has, and unsafe ones among them."""

    mask_LE: np.ndarray
    mask_hash: str
    num_rows: int
    num_unsafe: int

    @classmethod
    def of(cls, mask_LE: np.ndarray, unsafe: Sequence[bool]) -> Promise:
        """A batch that is in no store; `unsafe` are its rows' labels."""
        return cls(mask_LE, mask_hash(mask_LE), len(unsafe), sum(map(bool, unsafe)))


Promises = Callable[[str], Promise]
"""By batch id."""


def stored_promises(store: MaskStore) -> Promises:
    """Each batch's row as the store has it, read anew at every call, and found by the batch's id."""
    index_of = {batch.id: batch.index for batch in store.batches}

    def promise(batch_id: str) -> Promise:
        index = index_of[batch_id]
        num_safe, num_unsafe = store.arms_B2[index].tolist()
        return Promise(store.masks[index], store.batches[index].mask_hash, num_safe + num_unsafe, num_unsafe)

    return promise
