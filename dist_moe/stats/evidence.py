"""What is known of one batch, and what follows from it; computed when first asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

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
    """What is known of all batches; `dist_moe.stats.population` adds it up."""

    load_LE: np.ndarray
    """int64 [L, E]: how often each expert is used, by safe and unsafe prompts together."""
    pooled_LE: np.ndarray
    """float64 [L, E]: risk_diff of all prompts, each counted token weighing the same."""
    between_L: np.ndarray
    """float64 [L]: variance τ² of risk_diff between batches, one number for all experts of a layer."""
    union_LE: np.ndarray | None = None
    """bool [L, E]: selected in at least one batch, by the rule that a rule which needs the `union` is counted as."""


@dataclass(frozen=True)
class Evidence:
    """Prompts of one batch with their labels. Every random draw follows from (seed, batch, purpose) alone."""

    counts: RoutingCounts
    """Of P prompts, each with a counted token."""
    unsafe_P: np.ndarray
    """bool [P]."""
    design: Design
    """Which of the prompts are evidence together."""
    settings: StatisticsConfig
    seed: int
    batch: int
    population: Population | None = None
    """All batches together; only the rules and estimates that look beyond the batch need it."""

    def generator(self, purpose: str) -> np.random.Generator:
        """A stream of its own for each batch and purpose, so that the order of evaluation changes nothing."""
        return np.random.default_rng([self.seed, self.batch, *purpose.encode()])

    def relabelled(self, unsafe_P: np.ndarray) -> Evidence:
        """The same prompts with other labels."""
        return replace(self, unsafe_P=unsafe_P)

    def of(self, rows_P: np.ndarray) -> Evidence:
        """Some of the prompts, bool [P]; units must be whole."""
        return replace(
            self, counts=self.counts.of(rows_P), unsafe_P=self.unsafe_P[rows_P], design=self.design.of(rows_P)
        )

    @cached_property
    def can_be_halved(self) -> bool:
        """Whether each arm has two prompts or more that are independent."""
        return min(self.design.num_units(self.unsafe_P)) > 1

    @cached_property
    def risk_diff_LE(self) -> np.ndarray:
        """Tokens pooled: the definition."""
        return risk_diff(self.counts, self.unsafe_P, "micro")

    @cached_property
    def variance_LE(self) -> np.ndarray:
        """Sampling variance of `risk_diff_LE`."""
        return sampling_variance(self.counts, self.unsafe_P, self.design)

    @cached_property
    def shrunk_LE(self) -> np.ndarray:
        """risk_diff drawn towards that of all prompts, as far as it is noise. Needs the population."""
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
        """Share of half-samples of whose difference [L, E] `choose` selects each expert, float64 [L, E].

        Stability selection (Meinshausen, Bühlmann 2010). A half-sample is noisier than the batch, so more experts pass
        the threshold in it by chance; only a frequency near 1 says much. 0 where an arm has one prompt: other prompts
        might have selected other experts, and nothing says how often.
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
        """Likewise for what looks at more than a difference, and runs on each half-sample: slower."""
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
    """One batch. Rows without a counted token are left out: they have no rate, and say nothing. Their partners then
    have none."""
    kept_P = counts.tokens_P > 0
    unsafe_P = unsafe_P[kept_P]
    design = kinship.of(kept_P).design(unsafe_P)
    return Evidence(counts.of(kept_P), unsafe_P, design, settings, seed, batch, population)
