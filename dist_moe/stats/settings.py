"""Settings of the statistics, which are `analysis.statistics` in the configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from dist_moe.ranges import Count, NonNegativeInt


@dataclass(kw_only=True, slots=True)
class StatisticsConfig:
    permutations: NonNegativeInt = 2000
    """Labelings of a batch's prompts that its tests compare with; all of them, where there are fewer. 0: no statistics,
    and then no rule that tests."""
    resamples: Count = 200
    """Bootstrap samples of an interval, and half-samples of stability."""
    null_draws: Count = 100
    """Labelings on which the rule runs to say how many experts it selects by chance."""
    confidence: Annotated[float, Interval(gt=0, lt=1)] = 0.95
    """Of the intervals."""
    estimate: Literal["micro", "macro"] = "micro"
    """What tests, intervals and stability look at. micro: tokens pooled, as risk_diff is defined. macro: the mean of
    the prompts' rates, in which long prompts do not weigh more."""
    statistic: Literal["difference", "standardized"] = "standardized"
    """What family-wise p takes the largest of over experts: the difference, or the difference in units of what it
    varies by when labels are permuted."""
