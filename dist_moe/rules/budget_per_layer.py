"""The same number of experts in each layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dist_moe.ranges import Count
from dist_moe.rules.rule import RULES, OfDifference
from dist_moe.stats.order import first_of_each_layer


@RULES.register
@dataclass(frozen=True, kw_only=True)
class BudgetPerLayer(OfDifference):
    """Selects in each layer the per_layer experts with the largest risk_diff."""

    name = "budget_per_layer"
    has_null = False
    per_layer: Count = 4
    """Number of experts selected in each layer."""

    def choose(self, diff_LE: np.ndarray) -> np.ndarray:
        return first_of_each_layer(diff_LE, np.full(len(diff_LE), self.per_layer))

    @property
    def in_words(self) -> str:
        return f"the {self.per_layer} of largest risk_diff in each layer, whatever its sign"
