"""Baselines: controls that select the same experts for every batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dist_moe.rules.rule import RULES, Rule
from dist_moe.rules.threshold_top_k import Thresholded, ThresholdTopK
from dist_moe.stats.evidence import Evidence
from dist_moe.stats.order import selected


@dataclass(frozen=True, kw_only=True)
class SameForAll(Rule):
    """A rule that does not depend on the batch, so that half-samples and permuted labels of the batch say nothing
    about it."""

    is_control = True
    has_null = False

    def stability(self, batch: Evidence) -> np.ndarray:
        """0 for every expert, as nothing is known."""
        return np.zeros(batch.risk_diff_LE.shape)


@RULES.register
@dataclass(frozen=True, kw_only=True)
class EveryExpert(SameForAll):
    """Selects every expert."""

    name = "every_expert"

    def select(self, batch: Evidence) -> np.ndarray:
        return np.ones(batch.risk_diff_LE.shape, np.bool_)

    @property
    def in_words(self) -> str:
        return "control: all experts, for every batch"


@RULES.register
@dataclass(frozen=True, kw_only=True)
class Pooled(SameForAll, Thresholded):
    """One global mask: what `threshold_top_k` selects from the risk_diff of all prompts pooled."""

    name = "pooled"
    needs = frozenset({"population"})

    def select(self, batch: Evidence) -> np.ndarray:
        assert batch.population is not None
        return selected(batch.population.pooled_LE, self.threshold, self.top_k)

    @property
    def in_words(self) -> str:
        return (
            f"control: risk_diff of all prompts together above {self.threshold}, at most {self.top_k}, for every batch"
        )


@RULES.register
@dataclass(frozen=True, kw_only=True)
class Union(SameForAll, Thresholded):
    """The union of the masks that `threshold_top_k` selects for all batches."""

    name = "union"
    needs = frozenset({"population", "union"})

    @property
    def counted_as(self) -> ThresholdTopK:
        return self.like(ThresholdTopK)

    def select(self, batch: Evidence) -> np.ndarray:
        assert batch.population is not None
        assert batch.population.union_LE is not None
        return batch.population.union_LE

    @property
    def in_words(self) -> str:
        return (
            f"control: of any batch a risk_diff above {self.threshold}, at most {self.top_k} a batch, all of them for "
            "every batch"
        )
