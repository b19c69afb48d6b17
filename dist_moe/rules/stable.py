"""Selection of experts that other prompts would probably select too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dist_moe.ranges import Share
from dist_moe.rules.rule import RULES, Unselected
from dist_moe.rules.threshold_top_k import Thresholded, ThresholdTopK
from dist_moe.stats.evidence import Evidence


@RULES.register
@dataclass(frozen=True, kw_only=True)
class Stable(Thresholded):
    """Selects what threshold_top_k selects in at least the fraction `frequency` of half-samples (Meinshausen,
    Bühlmann 2010)."""

    name = "stable"
    needs = frozenset({"draws"})
    frequency: Share = 0.8
    """An expert is selected if threshold and top_k select it in at least this fraction of random half-samples of the
    batch's prompts."""

    def select(self, batch: Evidence) -> np.ndarray:
        return self.stability(batch) >= self.frequency

    @property
    def in_words(self) -> str:
        return (
            f"risk_diff above {self.threshold}, at most {self.top_k}, in at least {self.frequency} of half-samples of "
            "the prompts"
        )

    def none_selected(self, seen: Unselected) -> str:
        if seen.largest_risk_diff <= self.threshold:
            return self.none_above(seen)
        return (
            f"no expert in {seen.where} is selected in at least analysis.frequency = {self.frequency} of half-samples "
            f"of its prompts, {seen.num_prompts} of a label: use larger batches (batches.batch_size), or lower "
            "analysis.frequency"
        )

    def stability(self, batch: Evidence) -> np.ndarray:
        """The stability of threshold_top_k, which the rule compares with `frequency`."""
        return self.like(ThresholdTopK).stability(batch)
