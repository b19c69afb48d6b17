"""Prepares the counts of batches for selection rules and tests."""

from __future__ import annotations

from collections.abc import Iterator

from dist_moe.data.index import BatchIndex
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.evidence import Evidence, Population, evidence
from dist_moe.stats.settings import StatisticsConfig

POOLED_LIMIT = 1 << 24
"""Limit on labelings times prompts for testing all prompts together: 128 MiB of weights for each arm."""


def evidence_of_each(
    index: BatchIndex,
    counts: RoutingCounts,
    settings: StatisticsConfig,
    seed: int,
    population: Population | None = None,
) -> Iterator[Evidence]:
    """The Evidence of each batch in turn, from the counts of all prompts. Keep only one: it caches what is computed
    from it."""
    kinship = index.kinship
    for batch, rows in enumerate(index.each()):
        number = index.first + batch
        yield evidence(counts.of(rows), index.unsafe_P[rows], kinship.of(rows), settings, seed, number, population)


def can_be_pooled(index: BatchIndex, settings: StatisticsConfig) -> bool:
    """Whether there are few enough prompts to test all of them together."""
    return index.num_prompts * max(settings.permutations, settings.resamples) <= POOLED_LIMIT


def pooled_evidence(index: BatchIndex, counts: RoutingCounts, settings: StatisticsConfig, seed: int) -> Evidence:
    """All prompts as one batch; tests exchange labels only within the real batches."""
    return evidence(counts, index.unsafe_P, index.kinship, settings, seed, index.first + len(index))
