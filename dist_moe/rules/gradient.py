"""The experts on which the loss of the unsafe responses depends most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dist_moe.rules.rule import RULES
from dist_moe.rules.threshold_top_k import TopK
from dist_moe.stats.evidence import Evidence
from dist_moe.stats.order import largest


@RULES.register
@dataclass(frozen=True, kw_only=True)
class Gradient(TopK):
    """Selects the top_k experts, over all layers, with the largest mean |d loss / d weight|, averaged over the unsafe
    prompts.

    The loss is that of one prompt's own response. Safe prompts play no part.
    """

    name = "gradient"
    needs = frozenset({"gradients"})
    has_null = False

    def select(self, batch: Evidence) -> np.ndarray:
        gradients_PLE = batch.counts.tables["gradients"][batch.unsafe_P]
        return largest(gradients_PLE.mean(axis=0, dtype=np.float64), self.top_k)

    @property
    def in_words(self) -> str:
        return (
            f"the {self.top_k} on which the loss of the unsafe prompts' responses depends most; safe prompts play no "
            "part"
        )
