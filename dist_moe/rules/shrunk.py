"""Threshold and top_k on a shrinkage estimate of risk_diff."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dist_moe.rules.rule import RULES
from dist_moe.rules.threshold_top_k import Thresholded
from dist_moe.stats.evidence import Evidence
from dist_moe.stats.order import selected


@RULES.register
@dataclass(frozen=True, kw_only=True)
class Shrunk(Thresholded):
    """Like threshold_top_k, on the shrunk risk_diff, which also depends on the other batches."""

    name = "shrunk"
    needs = frozenset({"population"})
    has_null = False

    def select(self, batch: Evidence) -> np.ndarray:
        return selected(batch.shrunk_LE, self.threshold, self.top_k)

    @property
    def in_words(self) -> str:
        return (
            f"risk_diff, drawn towards that of all prompts, above {self.threshold}, at most {self.top_k}, largest first"
        )
