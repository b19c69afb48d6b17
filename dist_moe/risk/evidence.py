"""What is known of one batch, and what follows from it; computed when first asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dist_moe.config.schema import StatisticsConfig
from dist_moe.risk.contrast import Estimate
from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.estimates import bootstrap_interval, risk_diff
from dist_moe.risk.permutation import PermutationTest, permutation_test
from dist_moe.risk.select import SelectionRule
from dist_moe.risk.stability import selection_frequency


@dataclass(frozen=True)
class Evidence:
    """Prompts of one batch with their labels. Every random draw follows from (seed, batch, purpose) alone."""

    counts: RoutingCounts
    """Of P prompts, each with a counted token."""
    unsafe_P: np.ndarray
    """bool [P]."""
    strata_P: np.ndarray
    """int [P], see `dist_moe.risk.labelings.strata_of`."""
    settings: StatisticsConfig
    seed: int
    batch: int

    def generator(self, purpose: str) -> np.random.Generator:
        """A stream of its own for each batch and purpose, so that the order of evaluation changes nothing."""
        return np.random.default_rng([self.seed, self.batch, *purpose.encode()])

    def relabelled(self, unsafe_P: np.ndarray) -> Evidence:
        """The same prompts with other labels."""
        return replace(self, unsafe_P=unsafe_P)

    @cached_property
    def risk_diff_LE(self) -> np.ndarray:
        """Tokens pooled: the definition."""
        return risk_diff(self.counts, self.unsafe_P, "micro")

    @property
    def estimate(self) -> Estimate:
        return self.settings.estimate

    @cached_property
    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        return bootstrap_interval(
            self.counts,
            self.unsafe_P,
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
            self.strata_P,
            num_permutations=self.settings.permutations,
            estimate=self.estimate,
            generator=self.generator("permutation"),
        )

    def stability_LE(self, rule: SelectionRule) -> np.ndarray:
        """How often half of the prompts select each expert by the rule's threshold and top_k."""
        return selection_frequency(
            self.counts,
            self.unsafe_P,
            threshold=rule.threshold,
            top_k=rule.top_k,
            estimate=self.estimate,
            num_resamples=self.settings.resamples,
            generator=self.generator("half-samples"),
        )


def evidence(
    counts: RoutingCounts,
    unsafe_P: np.ndarray,
    strata_P: np.ndarray,
    settings: StatisticsConfig,
    seed: int,
    batch: int,
) -> Evidence:
    """Prompts without a counted token are left out: they have no rate, and say nothing."""
    kept_P = counts.tokens_P > 0
    kept = RoutingCounts(counts.counts_PLE[kept_P], counts.tokens_P[kept_P], counts.experts_per_token)
    return Evidence(kept, unsafe_P[kept_P], strata_P[kept_P], settings, seed, batch)
