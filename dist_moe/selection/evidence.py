"""From the counts of some batches to what a selection rule and a test look at."""

from __future__ import annotations

from collections.abc import Iterator

from dist_moe.data.index import BatchIndex
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.evidence import Evidence, Population, evidence
from dist_moe.stats.settings import StatisticsConfig

POOLED_LIMIT = 1 << 24
"""Labelings times prompts up to which all prompts are tested together: 128 MiB of weights an arm."""


def evidence_of_each(
    index: BatchIndex,
    counts: RoutingCounts,
    settings: StatisticsConfig,
    seed: int,
    population: Population | None = None,
) -> Iterator[Evidence]:
    """One for each batch, from the counts of all prompts; one at a time, as what is computed from it stays with it."""
    kinship = index.kinship
    for batch, rows in enumerate(index.each()):
        number = index.first + batch
        yield evidence(counts.of(rows), index.unsafe_P[rows], kinship.of(rows), settings, seed, number, population)


def can_be_pooled(index: BatchIndex, settings: StatisticsConfig) -> bool:
    """Whether these are few enough prompts to be tested together."""
    return index.num_prompts * max(settings.permutations, settings.resamples) <= POOLED_LIMIT


def pooled_evidence(index: BatchIndex, counts: RoutingCounts, settings: StatisticsConfig, seed: int) -> Evidence:
    """All prompts as one batch, whose labels are exchanged within batches only."""
    return evidence(counts, index.unsafe_P, index.kinship, settings, seed, index.first + len(index))
