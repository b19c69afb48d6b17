"""What a mask store says of each batch: with this the monitor compares a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dist_moe.stats.masks import mask_hash
from dist_moe.store.read import MaskStore


@dataclass(frozen=True, slots=True)
class Promise:
    """One batch: its mask bool [L, E], the mask's hash, and its numbers of rows and of unsafe rows."""

    mask_LE: np.ndarray
    mask_hash: str
    num_rows: int
    num_unsafe: int

    @classmethod
    def of(cls, mask_LE: np.ndarray, unsafe: Sequence[bool]) -> Promise:
        """For a batch that is in no store; `unsafe` are the labels of its rows."""
        return cls(mask_LE, mask_hash(mask_LE), len(unsafe), sum(map(bool, unsafe)))


Promises = Callable[[str], Promise]
"""Function from a batch's id to its Promise."""


def stored_promises(store: MaskStore) -> Promises:
    """Promises read from the store at every call, by the batch's id."""
    index_of = {batch.id: batch.index for batch in store.batches}

    def promise(batch_id: str) -> Promise:
        index = index_of[batch_id]
        num_safe, num_unsafe = store.arms_B2[index].tolist()
        return Promise(store.masks[index], store.batches[index].mask_hash, num_safe + num_unsafe, num_unsafe)

    return promise
