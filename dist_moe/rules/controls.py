"""Controls: rules that select as many experts as `threshold_top_k`, but other ones."""

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
    """Null counts and stability are those of `threshold_top_k`, which determines the number of experts."""

    is_control = True
    which: ClassVar[str]
    """Which experts it selects, as a phrase."""

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
    """Selects random experts from all layers, drawn anew for each batch."""

    name = "random"
    needs = frozenset({"draws"})
    which = "drawn at random"

    def rank(self, batch: Evidence) -> np.ndarray:
        return batch.generator("random").random(batch.risk_diff_LE.shape)


@RULES.register
@dataclass(frozen=True, kw_only=True)
class RandomMatched(Control):
    """Selects other experts that match those of `threshold_top_k` in layer, load, union and overlaps.

    Experts are permuted within each layer and quartile of load (over all batches), with the same permutation for all
    batches. So each batch keeps its number of experts in each layer and quartile, and the union and all overlaps keep
    their sizes.
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
    """Selects the experts that the batch's prompts use most, safe and unsafe together."""

    name = "load"
    which = "most used by safe and unsafe prompts together"

    def rank(self, batch: Evidence) -> np.ndarray:
        return batch.counts.counts_PLE.sum(axis=0)


@RULES.register
@dataclass(frozen=True, kw_only=True)
class Lowest(Ranked):
    """Selects the experts with the lowest risk_diff, which safe prompts use most."""

    name = "lowest"
    which = "lowest risk_diff, which are safe prompts' experts"

    def rank(self, batch: Evidence) -> np.ndarray:
        return -batch.risk_diff_LE
