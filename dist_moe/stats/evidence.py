"""Evidence: the counts and labels of one batch, and all statistics computed from them, each on first use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from dist_moe.stats.contrast import Estimate, all_risk_diffs
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.design import Design, Kinship
from dist_moe.stats.estimates import bootstrap_interval, risk_diff, sampling_variance, shrink
from dist_moe.stats.permutation import PermutationTest, permutation_test
from dist_moe.stats.resamples import half_samples
from dist_moe.stats.settings import StatisticsConfig


@dataclass(frozen=True, slots=True)
class Population:
    """What is known of all batches together; `dist_moe.stats.population` sums it up."""

    load_LE: np.ndarray
    """int64 [L, E]: number of uses of each expert, by safe and unsafe prompts together."""
    pooled_LE: np.ndarray
    """float64 [L, E]: risk_diff of all prompts, with the same weight for each counted token."""
    between_L: np.ndarray
    """float64 [L]: variance τ² of risk_diff between batches, one number for all experts of a layer."""
    union_LE: np.ndarray | None = None
    """bool [L, E]: experts selected for at least one batch, if the rule needs the `union`."""


@dataclass(frozen=True)
class Evidence:
    """One batch: prompts with their labels. Every random draw follows from (seed, batch, purpose) alone."""

    counts: RoutingCounts
    """Counts of P prompts, each with at least one counted token."""
    unsafe_P: np.ndarray
    """bool [P]."""
    designed: Callable[[], Design]
    """Gives `design`, on first use: a rule without tests and draws needs none, and it takes longer than the rates."""
    settings: StatisticsConfig
    seed: int
    batch: int
    population: Population | None = None
    """What is known of all batches; None if the rule and the estimates do not need it."""

    def generator(self, purpose: str) -> np.random.Generator:
        """A separate random generator for each batch and purpose, so that the order of computation does not matter."""
        return np.random.default_rng([self.seed, self.batch, *purpose.encode()])

    def relabelled(self, unsafe_P: np.ndarray) -> Evidence:
        """The same prompts with other labels."""
        return replace(self, unsafe_P=unsafe_P)

    def of(self, rows_P: np.ndarray) -> Evidence:
        """Some of the prompts, bool [P]; units must be complete."""
        counts, unsafe_P = self.counts.of(rows_P), self.unsafe_P[rows_P]
        return replace(self, counts=counts, unsafe_P=unsafe_P, designed=lambda: self.design.of(rows_P))

    @cached_property
    def design(self) -> Design:
        """Which rows are independent, and which labels can be exchanged; under other labels the same."""
        return self.designed()

    @cached_property
    def can_be_halved(self) -> bool:
        """Whether each arm has at least two independent units."""
        return min(self.design.num_units(self.unsafe_P)) > 1

    @cached_property
    def risk_diff_LE(self) -> np.ndarray:
        """risk_diff, by its definition: tokens pooled (micro)."""
        return risk_diff(self.counts, self.unsafe_P, "micro")

    def risk_diffs_under(self, labels_NP: np.ndarray) -> np.ndarray:
        """`risk_diff_LE` under other labels of the same prompts, bool [N, P]: float64 [N, L, E]."""
        return all_risk_diffs(labels_NP, ~labels_NP, self.counts, "micro")

    @cached_property
    def variance_LE(self) -> np.ndarray:
        """Sampling variance of `risk_diff_LE`."""
        return sampling_variance(self.counts, self.unsafe_P, self.design)

    @cached_property
    def shrunk_LE(self) -> np.ndarray:
        """The shrunk risk_diff, see `shrink`. Needs the population."""
        assert self.population is not None
        return shrink(self.risk_diff_LE, self.variance_LE, self.population.pooled_LE, self.population.between_L)

    @property
    def estimate(self) -> Estimate:
        return self.settings.estimate

    @cached_property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        return bootstrap_interval(
            self.counts,
            self.unsafe_P,
            self.design,
            estimate=self.estimate,
            num_resamples=self.settings.resamples,
            confidence=self.settings.confidence,
            generator=self.generator("bootstrap"),
        )

    @cached_property
    def test(self) -> PermutationTest:
        return permutation_test(
            self.counts,
            self.unsafe_P,
            self.design,
            num_permutations=self.settings.permutations,
            estimate=self.estimate,
            statistic=self.settings.statistic,
            generator=self.generator("permutation"),
        )

    @cached_property
    def half_samples_NP(self) -> np.ndarray:
        """bool [N, P], see `dist_moe.stats.resamples.half_samples`."""
        generator = self.generator("half-samples")
        return half_samples(self.unsafe_P, self.design, self.settings.resamples, generator)

    def frequency_LE(self, choose: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Fraction of half-samples in which `choose` selects each expert from the difference [L, E]: float64 [L, E].

        Stability selection (Meinshausen, Bühlmann 2010). A half-sample is noisier than the batch, so more experts pass
        a threshold by chance; only a fraction near 1 says much. 0 if an arm has one unit: nothing is known about other
        prompts.
        """
        if not self.can_be_halved:
            return self._never_LE
        chosen_NP, times_LE = self.half_samples_NP, np.zeros(self.counts.counts_PLE.shape[1:], np.int64)
        for diff_LE in all_risk_diffs(
            chosen_NP & self.unsafe_P, chosen_NP & ~self.unsafe_P, self.counts, self.estimate
        ):
            times_LE += choose(diff_LE)
        return times_LE / len(chosen_NP)

    def frequency_of_LE(self, select: Callable[[Evidence], np.ndarray]) -> np.ndarray:
        """The same for a rule that needs more than a difference, and is run on each half-sample; slower."""
        if not self.can_be_halved:
            return self._never_LE
        times_LE = np.zeros(self.counts.counts_PLE.shape[1:], np.int64)
        for chosen_P in self.half_samples_NP:
            times_LE += select(self.of(chosen_P))
        return times_LE / len(self.half_samples_NP)

    @property
    def _never_LE(self) -> np.ndarray:
        return np.zeros(self.counts.counts_PLE.shape[1:])


def evidence(
    counts: RoutingCounts,
    unsafe_P: np.ndarray,
    kinship: Kinship,
    settings: StatisticsConfig,
    seed: int,
    batch: int,
    population: Population | None = None,
) -> Evidence:
    """The Evidence of one batch. Rows without a counted token are left out, because they have no rate; their
    partners then count as unpaired."""
    kept_P = counts.tokens_P > 0
    if not kept_P.all():
        counts, unsafe_P, kinship = counts.of(kept_P), unsafe_P[kept_P], kinship.of(kept_P)
    return Evidence(counts, unsafe_P, cache(lambda: kinship.design(unsafe_P)), settings, seed, batch, population)
