"""How each batch does by one measure, in mid-run, and which batches are weak beyond noise.

The values are those of the tables of an evaluation (`measures.py`), each of one model. A batch is weak only if its
whole 95 % interval is on the wrong side of the limit; of many batches that are all at the limit, one in 40 is so by
chance.

Legend: P rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dist_moe.evaluation.measures import FEWEST, Resampling, share
from dist_moe.stats.cluster_bootstrap import intervals, ratio
from dist_moe.stats.design import Kinship
from dist_moe.stats.measured import Estimate
from dist_moe.stats.proportions import wilson


@dataclass(frozen=True, slots=True)
class Limit:
    """Values on the one side of it are weak; one of the two is set."""

    below: float | None
    above: float | None

    def is_weak(self, value: Estimate | None) -> bool:
        """Whether even the better end of the interval is weak; without an interval nothing is known."""
        if value is None or value.low is None or value.high is None:
            return False
        return value.high < self.below if self.below is not None else value.low > self.above  # type: ignore[operator]

    def badness(self, value: Estimate) -> float:
        """Larger is worse."""
        return -value.value if self.below is not None else value.value


def refusal_rate(prompts: Sequence[str], refused: Sequence[bool | None]) -> Estimate | None:
    """The share of rows that were refused, with Wilson's interval; None of `refused`: nobody could tell."""
    return share([(prompt, said) for prompt, said in zip(prompts, refused, strict=True) if said is not None])


def mean_loss(
    prompts: Sequence[str], losses: Sequence[float], tokens: Sequence[int], resampling: Resampling, name: str
) -> Estimate | None:
    """Loss per token of P rows, with an interval by the bootstrap over prompts if there are enough; None: no token.

    Args:
        prompts: 16 hex digits of each row, the same for rows of one prompt.
        losses: - log p of each row's response, added up over its tokens, in nats.
        tokens: their numbers.
        resampling: of the bootstrap.
        name: of the batch, for the draws.
    """
    known = [row for row, number in enumerate(tokens) if number]
    if not known:
        return None
    loss_P, token_P = np.array(losses, np.float64)[known], np.array(tokens, np.float64)[known]
    cluster_P = np.array([int(prompts[row], 16) for row in known], np.uint64)
    kinship = Kinship(cluster_P, np.zeros(len(known), np.uint64), np.zeros(len(known), np.int64))
    num_prompts, low, high = len(np.unique(cluster_P)), None, None
    if num_prompts >= FEWEST:
        of_one_label_P = np.ones(len(known), np.bool_)
        ends_21 = intervals(
            lambda weights_NP: ratio(weights_NP, loss_P, token_P)[:, None],
            kinship,
            of_one_label_P,
            resampling.number,
            (resampling.seed, name),
        )
        low, high = float(ends_21[0, 0]), float(ends_21[1, 0])
    value = float(loss_P.sum() / token_P.sum())
    return Estimate(value=value, low=low, high=high, num_rows=len(known), num_prompts=num_prompts)


def most_refused(num_prompts: int, below: float) -> int | None:
    """How many of so many prompts a batch may refuse and still be weak; None: it cannot be, whatever it refuses."""
    weak = [number for number in range(num_prompts + 1) if wilson(number, num_prompts)[1] < below]
    return max(weak, default=None)
