"""The mask stores of a run, and which one is in use at each step (`train.revisions`, `train.adjust`)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from dist_moe.store.read import MaskStore
from dist_moe.training.state import RevisionInForce


@dataclass(frozen=True, slots=True)
class MaskRevisions:
    """`stores[0]` is used from the first step on, `stores[i + 1]` after step `ends[i]` (steps count from 1).

    All stores have the same batches. They are the revisions 0, 1, ... of the run.
    """

    stores: tuple[MaskStore, ...]
    ends: tuple[int, ...] = ()

    @property
    def first(self) -> MaskStore:
        """The first store; use it for what all revisions share: batches and prompts."""
        return self.stores[0]

    def at(self, step: int) -> RevisionInForce:
        """The revision under which step 1, 2, ... trains."""
        return self[bisect_right(self.ends, step - 1)]

    def __getitem__(self, number: int) -> RevisionInForce:
        return RevisionInForce(number, self.stores[number].digest)

    def and_then(self, end: int, store: MaskStore) -> MaskRevisions:
        """These, and another store from the step after `end` on."""
        return MaskRevisions((*self.stores, store), (*self.ends, end))

    def union(self) -> np.ndarray:
        """bool [L, E]: experts in the mask of at least one batch, in at least one revision."""
        union_LE: np.ndarray = np.logical_or.reduce([store.union() for store in self.stores])
        return union_LE
