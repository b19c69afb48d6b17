"""Selection by a permutation test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Interval

from dist_moe.rules.rule import RULES, Rule, Unselected
from dist_moe.rules.threshold_top_k import ThresholdTopK
from dist_moe.stats.evidence import Evidence


@RULES.register
@dataclass(frozen=True, kw_only=True)
class Significant(Rule):
    """Selects experts that unsafe prompts use more, with a q-value (or family-wise p-value) of at most alpha."""

    name = "significant"
    needs = frozenset({"tests"})
    alpha: Annotated[float, Interval(gt=0, lt=1)] = 0.05
    """Significance level: an expert is selected if its q-value (or family-wise p-value) is at most this."""
    correction: Literal["fdr", "family"] = "fdr"
    """Correction for testing many experts. fdr: Benjamini-Hochberg q-values, which control the false discovery rate.
    family: family-wise p-values (max-T), which control the chance of any false selection."""

    def select(self, batch: Evidence) -> np.ndarray:
        p_LE = batch.test.q_LE if self.correction == "fdr" else batch.test.family_p_LE
        return (p_LE <= self.alpha) & (batch.risk_diff_LE > 0)

    @property
    def in_words(self) -> str:
        what = {"fdr": "a q-value", "family": "a family-wise p"}[self.correction]
        return f"risk_diff above 0 with {what} of at most {self.alpha}"

    def none_selected(self, seen: Unselected) -> str:
        if seen.smallest_p_value is None or seen.smallest_p_value <= self.alpha:
            return super().none_selected(seen)
        return (
            f"with {seen.num_prompts} prompts of a label, no p-value in {seen.where} can be below "
            f"{seen.smallest_p_value:.2g}, and analysis.alpha = {self.alpha}: use larger batches (batches.batch_size)"
        )

    def stability(self, batch: Evidence) -> np.ndarray:
        """That of threshold_top_k with default parameters, as testing every half-sample would take long."""
        return ThresholdTopK().stability(batch)
