"""The rules of ESFT (arXiv 2407.01906): the experts that unsafe prompts use most. Safe prompts play no part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dist_moe.ranges import Share
from dist_moe.rules.rule import RULES, Rule
from dist_moe.stats.evidence import Evidence
from dist_moe.stats.order import first_of_each_layer


@dataclass(frozen=True, kw_only=True)
class TopP(Rule):
    """Selects in each layer the fewest experts whose shares together reach top_p."""

    top_p: Share = 0.2
    """In each layer, experts are selected, most used first, until together they receive at least this share of the
    unsafe prompts' routing."""

    def reaching(self, share_LE: np.ndarray) -> np.ndarray:
        """These experts, bool [L, E], from the shares."""
        reached_LE = np.cumsum(-np.sort(-share_LE, axis=1), axis=1) >= self.top_p - 1e-12
        # argmax of all-false is 0: where null experts keep a layer's shares from ever reaching top_p, all are taken
        number_L = np.where(reached_LE.any(axis=1), reached_LE.argmax(axis=1) + 1, share_LE.shape[1])
        return first_of_each_layer(share_LE, number_L)


@RULES.register
@dataclass(frozen=True, kw_only=True)
class EsftToken(TopP):
    """ESFT-Token: an expert's share is the mean of c / (k t) over the unsafe prompts, with c of t tokens routed to
    it."""

    name = "esft_token"

    def select(self, batch: Evidence) -> np.ndarray:
        counts = batch.counts
        slots_P11 = (counts.experts_per_token * counts.tokens_P)[:, None, None]
        return self.reaching((counts.counts_PLE / slots_P11)[batch.unsafe_P].mean(axis=0))

    @property
    def in_words(self) -> str:
        return (
            f"in each layer, the fewest experts with {self.top_p} of the unsafe prompts' routing; safe prompts play no "
            "part"
        )


@RULES.register
@dataclass(frozen=True, kw_only=True)
class EsftGate(TopP):
    """ESFT-Gate: an expert's share is its mean routing weight per counted token, averaged over the unsafe prompts,
    relative to the sum over the layer (not in every family do the weights sum to 1)."""

    name = "esft_gate"
    needs = frozenset({"gates"})

    def select(self, batch: Evidence) -> np.ndarray:
        gates_PLE = batch.counts.tables["gates"] / batch.counts.tokens_P[:, None, None]
        mean_LE = gates_PLE[batch.unsafe_P].mean(axis=0)
        return self.reaching(mean_LE / np.maximum(mean_LE.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny))

    @property
    def in_words(self) -> str:
        return (
            f"in each layer, the fewest experts with {self.top_p} of the unsafe prompts' routing weight; safe prompts "
            "play no part"
        )
