"""Sums over batches that rules and estimates for a single batch need; partial sums can be added."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from dist_moe.stats.evidence import Evidence, Population


@dataclass(frozen=True, slots=True)
class PopulationSums:
    """Sums over batches. Counts are exact; floating-point sums depend on the order of addition."""

    num_batches: int
    counts_ALE: np.ndarray
    """int64 [2, L, E]: counts of the safe and the unsafe prompts."""
    tokens_A: np.ndarray
    """int64 [2]: numbers of their counted tokens."""
    diff_LE: np.ndarray
    """float64 [L, E]: sum of the batches' risk_diff (micro)."""
    diff_squared_LE: np.ndarray
    """float64 [L, E]."""
    variance_LE: np.ndarray
    """float64 [L, E]: sum of the batches' sampling variances; infinite if one of them is."""
    union_LE: np.ndarray
    """bool [L, E]: experts of at least one batch."""

    @staticmethod
    def of(batch: Evidence, experts_LE: np.ndarray | None = None) -> PopulationSums:
        """The sums of a single batch; `experts_LE` bool [L, E] are its experts for the union, None: none."""
        arms = (~batch.unsafe_P, batch.unsafe_P)
        return PopulationSums(
            1,
            np.array([batch.counts.counts_PLE[arm_P].sum(axis=0) for arm_P in arms]),
            np.array([batch.counts.tokens_P[arm_P].sum() for arm_P in arms]),
            batch.risk_diff_LE,
            batch.risk_diff_LE**2,
            batch.variance_LE,
            np.zeros(batch.variance_LE.shape, np.bool_) if experts_LE is None else experts_LE,
        )

    def __add__(self, other: PopulationSums) -> PopulationSums:
        return PopulationSums(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def population(self) -> Population:
        """The Population that follows from the sums over all batches; each arm must have a counted token.

        τ² is one number for each layer, by the method of moments: the mean over batches and experts of (d - m)² - v, or
        0 if that is negative, where d is a batch's risk_diff, v its sampling variance and m the pooled risk_diff.
        """
        assert (self.tokens_A > 0).all()
        safe_LE, unsafe_LE = self.counts_ALE / self.tokens_A[:, None, None]
        pooled_LE = unsafe_LE - safe_LE
        squared_LE = self.diff_squared_LE - 2 * pooled_LE * self.diff_LE + self.num_batches * pooled_LE**2
        excess_L = ((squared_LE - self.variance_LE) / self.num_batches).mean(axis=1)
        return Population(self.counts_ALE.sum(axis=0), pooled_LE, np.maximum(excess_L, 0.0), self.union_LE)
