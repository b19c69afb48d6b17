"""The settings `analysis.statistics`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Interval

from dist_moe.ranges import Count, NonNegativeInt


@dataclass(kw_only=True, slots=True)
class StatisticsConfig:
    permutations: NonNegativeInt = 2000
    """Number of permutations of the prompts' safe/unsafe labels that each batch's tests compare with. Where a batch has
    fewer distinct ones, all are used and p-values are exact. 0: compute no statistics; a rule that needs tests then
    cannot be used."""
    resamples: Count = 200
    """Number of bootstrap samples for each confidence interval, and of half-samples for `stability`."""
    null_draws: Count = 100
    """Number of label permutations on which the rule is run, to see how many experts it selects by chance."""
    confidence: Annotated[float, Interval(gt=0, lt=1)] = 0.95
    """Confidence level of the intervals."""
    estimate: Literal["micro", "macro"] = "micro"
    """The difference between unsafe and safe prompts that tests, intervals and stability use. micro: of rates over all
    tokens pooled, as in risk_diff, so long prompts weigh more. macro: of the means of the prompts' rates, so each
    prompt weighs the same."""
    statistic: Literal["difference", "standardized"] = "standardized"
    """What the family-wise test takes the maximum of, over experts. difference: the difference itself. standardized:
    the difference divided by its spread under label permutations, so that experts with large variance do not decide."""
