"""Which prompts make which batch, and what a test may know of them besides their counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dist_moe.config.schema import StatisticsConfig
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.design import Kinship
from dist_moe.stats.evidence import Evidence, Population, evidence

POOLED_LIMIT = 1 << 24
"""Labelings times prompts up to which all prompts are tested together: 128 MiB of weights an arm."""


@dataclass(frozen=True, slots=True)
class LabelledBatches:
    """The prompts of some consecutive batches, in the order of their batches."""

    first: int
    """Index of the first batch in the whole analysis."""
    starts: tuple[int, ...]
    """Where each batch's prompts begin, and where the last one's end."""
    unsafe_P: np.ndarray
    """bool [P]."""
    kinship: Kinship
    """Which of the P prompts are of one text, or pairs."""
    names: tuple[str, ...]
    """How an error calls each batch."""

    @property
    def batch_of_P(self) -> np.ndarray:
        """int64 [P]: in which of these batches each prompt is, counted from 0."""
        return np.repeat(np.arange(len(self.names)), np.diff(self.starts))

    def of(self, batches: range) -> LabelledBatches:
        """Some of them, by their index in the whole analysis."""
        here = range(batches.start - self.first, batches.stop - self.first)
        prompts = slice(self.starts[here.start], self.starts[here.stop])
        return LabelledBatches(
            batches.start,
            tuple(start - prompts.start for start in self.starts[here.start : here.stop + 1]),
            self.unsafe_P[prompts],
            self.kinship.of(prompts),
            self.names[here.start : here.stop],
        )

    def evidence(
        self, counts: RoutingCounts, settings: StatisticsConfig, seed: int, population: Population | None = None
    ) -> Iterator[Evidence]:
        """One for each batch; one at a time, as what is computed from it stays with it."""
        for index, rows in enumerate(map(slice, self.starts[:-1], self.starts[1:])):
            kinship, number = self.kinship.of(rows), self.first + index
            yield evidence(counts.of(rows), self.unsafe_P[rows], kinship, settings, seed, number, population)

    def can_be_pooled(self, settings: StatisticsConfig) -> bool:
        """Whether these are few enough prompts to be tested together."""
        return len(self.unsafe_P) * max(settings.permutations, settings.resamples) <= POOLED_LIMIT

    def pooled(self, counts: RoutingCounts, settings: StatisticsConfig, seed: int) -> Evidence:
        """All prompts as one batch, whose labels are exchanged within batches only."""
        return evidence(counts, self.unsafe_P, self.kinship, settings, seed, self.first + len(self.names))


def labelled(
    sizes: Sequence[int],
    unsafe: Sequence[bool],
    prompts: Sequence[str],
    pair_ids: Sequence[str | None],
    names: Sequence[str],
) -> LabelledBatches:
    """All batches of an analysis, from the number of rows of each, and the rows' labels, prompts as text, and pairs."""
    kinship = Kinship.of_texts(prompts, pair_ids, np.repeat(np.arange(len(sizes)), sizes))
    return LabelledBatches(0, (0, *np.cumsum(sizes).tolist()), np.array(unsafe), kinship, tuple(names))
