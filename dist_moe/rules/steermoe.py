"""The rule of SteerMoE (arXiv 2509.09660)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dist_moe.rules.rule import RULES, OfDifference
from dist_moe.rules.threshold_top_k import TopK
from dist_moe.stats.order import selected


@RULES.register
@dataclass(frozen=True, kw_only=True)
class SteerMoE(TopK, OfDifference):
    """Selects the top_k experts with the largest |risk_diff| over all layers, of either sign; no threshold."""

    name = "steermoe"
    has_null = False

    def choose(self, diff_LE: np.ndarray) -> np.ndarray:
        return selected(np.abs(diff_LE), -1.0, self.top_k)

    @property
    def in_words(self) -> str:
        return f"the {self.top_k} of largest |risk_diff|, of either sign"
