"""BatchIndex: which prompts are in which batch. Used by everything from the data to the evaluation.

P prompts are sorted by their B batches, so that a batch is a slice of every array over prompts: rows, counts, scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dist_moe.stats.design import Kinship
from dist_moe.stats.names import batch_name


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchIndex:
    """Consecutive batches of an analysis (all, or a part), and the prompts in them."""

    ids: tuple[str, ...]
    """Id of each batch, a hash of its rows."""
    categories: tuple[str, ...]
    """Category of each batch."""
    starts_B1: np.ndarray
    """int64 [B + 1]: where the prompts of each batch begin; the last entry is P."""
    prompt_ids: tuple[str, ...]
    unsafe_P: np.ndarray
    """bool [P]: label of each prompt."""
    cluster_P: np.ndarray | None
    """uint64 [P]: equal for rows of one prompt. None: unknown, as in an imported file."""
    pair_P: np.ndarray | None
    """uint64 [P]: equal for rows with one `pair_id`, 0 for rows without. None if `cluster_P` is None."""
    first: int = 0
    """Number of the first of these batches in the whole analysis."""

    def __post_init__(self) -> None:
        assert len(self.ids) == len(self.categories) == len(self.starts_B1) - 1
        assert self.starts_B1[0] == 0
        assert (np.diff(self.starts_B1) >= 0).all(), "prompts are not in the order of their batches"
        assert self.unsafe_P.dtype == np.bool_
        assert self.unsafe_P.shape == (self.starts_B1[-1],) == (len(self.prompt_ids),)
        assert (self.cluster_P is None) == (self.pair_P is None)
        for known_P in (self.cluster_P, self.pair_P):
            assert known_P is None or (known_P.dtype == np.uint64 and known_P.shape == self.unsafe_P.shape)

    @staticmethod
    def of_sizes(
        sizes: Sequence[int],
        *,
        ids: Sequence[str],
        categories: Sequence[str],
        prompt_ids: Sequence[str],
        unsafe: Sequence[bool],
        kinship: Kinship | None,
    ) -> BatchIndex:
        """All batches of an analysis, from the number of prompts of each."""
        return BatchIndex(
            ids=tuple(ids),
            categories=tuple(categories),
            starts_B1=np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]),
            prompt_ids=tuple(prompt_ids),
            unsafe_P=np.array(unsafe, np.bool_),
            cluster_P=None if kinship is None else kinship.cluster_P,
            pair_P=None if kinship is None else kinship.pair_P,
        )

    def __len__(self) -> int:
        """Number of batches, B."""
        return len(self.ids)

    @property
    def num_prompts(self) -> int:
        """Number of prompts, P."""
        return len(self.prompt_ids)

    def rows(self, batches: int | range) -> slice:
        """The prompts of one batch, or of consecutive batches, as a slice."""
        some = range(batches, batches + 1) if isinstance(batches, int) else batches
        return slice(int(self.starts_B1[some.start]), int(self.starts_B1[some.stop]))

    def each(self) -> list[slice]:
        """The prompts of each batch in turn, as slices."""
        return [self.rows(batch) for batch in range(len(self))]

    def of(self, batches: range) -> BatchIndex:
        """A part of these batches: consecutive ones."""
        rows, some = self.rows(batches), slice(batches.start, batches.stop)
        return BatchIndex(
            ids=self.ids[some],
            categories=self.categories[some],
            starts_B1=self.starts_B1[batches.start : batches.stop + 1] - rows.start,
            prompt_ids=self.prompt_ids[rows],
            unsafe_P=self.unsafe_P[rows],
            cluster_P=None if self.cluster_P is None else self.cluster_P[rows],
            pair_P=None if self.pair_P is None else self.pair_P[rows],
            first=self.first + batches.start,
        )

    @property
    def sizes_B(self) -> np.ndarray:
        """int64 [B]: number of prompts of each batch."""
        return np.diff(self.starts_B1)

    @cached_property
    def batch_of_P(self) -> np.ndarray:
        """int64 [P]: batch of each prompt, counted from 0."""
        return np.repeat(np.arange(len(self)), self.sizes_B)

    @property
    def place_P(self) -> np.ndarray:
        """int64 [P]: position of each prompt in its batch, counted from 0."""
        return np.arange(self.num_prompts) - self.starts_B1[self.batch_of_P]

    def name(self, batch: int) -> str:
        """Name of a batch for tables and messages."""
        return batch_name(self.first + batch, self.categories[batch], self.ids[batch])

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all batches."""
        return tuple(map(self.name, range(len(self))))

    @property
    def is_kinship_known(self) -> bool:
        return self.cluster_P is not None

    @property
    def kinship(self) -> Kinship:
        """Which rows have the same prompt or pair; if that is unknown, every row counts as a prompt of its own."""
        if self.cluster_P is None or self.pair_P is None:
            return Kinship.none(self.batch_of_P)
        return Kinship(self.cluster_P, self.pair_P, self.batch_of_P)
