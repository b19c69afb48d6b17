"""The default rule: risk_diff above a threshold, at most top_k experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval

from dist_moe.ranges import Count
from dist_moe.rules.rule import RULES, OfDifference, Rule, Unselected
from dist_moe.stats.order import selected


@dataclass(frozen=True, kw_only=True)
class TopK(Rule):
    """Base of rules with a maximum number of experts."""

    top_k: Count = 50
    """Maximum number of experts selected for a batch, over all layers together."""


@dataclass(frozen=True, kw_only=True)
class Threshold(Rule):
    """Base of rules with a minimum risk_diff."""

    threshold: Annotated[float, Interval(ge=-1, lt=1)] = 0.05
    """An expert can be selected for a batch only if its risk_diff there is above this (with the rule shrunk: its shrunk
    risk_diff). risk_diff is the expert's usage by unsafe prompts minus that by safe prompts, each as the fraction of
    tokens for which it is among the k chosen."""

    def none_above(self, seen: Unselected) -> str:
        """Where the threshold is above every risk_diff: how far down it has to be."""
        return (
            f"no expert in {seen.where} has a risk_diff above analysis.threshold = {self.threshold}: the largest is "
            f"{seen.largest_risk_diff:.6g}; set analysis.threshold below that"
        )


@dataclass(frozen=True, kw_only=True)
class Thresholded(TopK, Threshold):
    """Base of rules with both."""


@RULES.register
@dataclass(frozen=True, kw_only=True)
class ThresholdTopK(Thresholded, OfDifference):
    """Selects experts with a risk_diff above the threshold; at most top_k, the largest first."""

    name = "threshold_top_k"

    def choose(self, diff_LE: np.ndarray) -> np.ndarray:
        return selected(diff_LE, self.threshold, self.top_k)

    @property
    def in_words(self) -> str:
        return f"risk_diff above {self.threshold}, at most {self.top_k}, largest first"

    def none_selected(self, seen: Unselected) -> str:
        return self.none_above(seen)
