"""Controls: other experts, as many as `threshold_top_k` takes, to compare its masks with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dist_moe.rules.rule import RULES
from dist_moe.rules.threshold_top_k import Thresholded, ThresholdTopK
from dist_moe.stats.evidence import Evidence
from dist_moe.stats.order import largest

LOAD_QUANTILES = 4


@dataclass(frozen=True, kw_only=True)
class Control(Thresholded):
    """Null and stability are those of `threshold_top_k`, which says how many experts it takes."""

    is_control = True
    which: ClassVar[str]
    """Which experts, in words."""

    @property
    def counted_as(self) -> ThresholdTopK:
        return self.like(ThresholdTopK)

    @property
    def in_words(self) -> str:
        return f"control: {self.which}, as many as have a risk_diff above {self.threshold}, at most {self.top_k}"

    def stability(self, batch: Evidence) -> np.ndarray:
        return self.counted_as.stability(batch)


class Ranked(Control):
    """Those experts that come first by some number."""

    def rank(self, batch: Evidence) -> np.ndarray:
        """[L, E]: the largest are taken."""
        raise NotImplementedError

    def select(self, batch: Evidence) -> np.ndarray:
        return largest(self.rank(batch), int(self.counted_as.select(batch).sum()))


@RULES.register
@dataclass(frozen=True, kw_only=True)
class Random(Ranked):
    """Experts drawn at random over all layers, anew for each batch."""

    name = "random"
    needs = frozenset({"draws"})
    which = "drawn at random"

    def rank(self, batch: Evidence) -> np.ndarray:
        return batch.generator("random").random(batch.risk_diff_LE.shape)


@RULES.register
@dataclass(frozen=True, kw_only=True)
class RandomMatched(Control):
    """`threshold_top_k`'s mask with other experts that have all else in common with its own.

    One permutation of the experts, the same for all batches, within each layer's quartiles of load over all batches.
    So each batch keeps its number of experts in each layer and load quartile, and the union and every overlap of
    batches keep their size.
    """

    name = "random_matched"
    needs = frozenset({"population", "draws"})
    which = "drawn at random among experts of like load in the same layer"

    def select(self, batch: Evidence) -> np.ndarray:
        assert batch.population is not None
        mask_LE = self.counted_as.select(batch)
        generator = np.random.default_rng([batch.seed, *b"random_matched"])
        matched_LE = np.zeros_like(mask_LE)
        for layer, order_E in enumerate(np.argsort(batch.population.load_LE, axis=1, kind="stable")):
            for group in np.array_split(order_E, LOAD_QUANTILES):
                matched_LE[layer, generator.permutation(group)] = mask_LE[layer, group]
        return matched_LE


@RULES.register
@dataclass(frozen=True, kw_only=True)
class Load(Ranked):
    """The experts that the batch's prompts use most, safe and unsafe together."""

    name = "load"
    which = "most used by safe and unsafe prompts together"

    def rank(self, batch: Evidence) -> np.ndarray:
        return batch.counts.counts_PLE.sum(axis=0)


@RULES.register
@dataclass(frozen=True, kw_only=True)
class Lowest(Ranked):
    """The lowest risk_diff, the experts of safe prompts."""

    name = "lowest"
    which = "lowest risk_diff, which are safe prompts' experts"

    def rank(self, batch: Evidence) -> np.ndarray:
        return -batch.risk_diff_LE
