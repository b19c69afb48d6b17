"""Routing counts per prompt: what the routing tap measures, and all that the rest is computed from."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class RoutingCounts:
    """How often each expert was among the top-k, per prompt."""

    counts_PLE: np.ndarray
    """int64 [P, L, E]: counted tokens of prompt p that layer l sent to expert e."""
    tokens_P: np.ndarray
    """int64 [P]: counted tokens of prompt p."""
    experts_per_token: int
    """The model's k: a counted token adds at most this much to each layer."""
    gates_PLE: np.ndarray | None = None
    """float64 [P, L, E], where they were asked for: sums of the routing weights of the tokens in `counts_PLE`."""

    def __post_init__(self) -> None:
        assert self.gates_PLE is None or self.gates_PLE.shape == self.counts_PLE.shape
        assert self.counts_PLE.dtype == self.tokens_P.dtype == np.int64
        assert self.counts_PLE.ndim == 3
        assert self.tokens_P.shape == self.counts_PLE.shape[:1]
        assert (self.counts_PLE >= 0).all()
        assert (self.counts_PLE <= self.tokens_P[:, None, None]).all(), "an expert is counted twice for one token"
        assert (self.counts_PLE.sum(axis=2) <= self.experts_per_token * self.tokens_P[:, None]).all()

    @property
    def num_prompts(self) -> int:
        return self.counts_PLE.shape[0]

    def of(self, rows: np.ndarray | slice) -> "RoutingCounts":
        """The given prompts (indices, a bool mask [P] or a slice)."""
        gates_PLE = None if self.gates_PLE is None else self.gates_PLE[rows]
        return RoutingCounts(self.counts_PLE[rows], self.tokens_P[rows], self.experts_per_token, gates_PLE)

    def pooled(self, rows: np.ndarray) -> "RoutingCounts":
        """Counts of the given prompts (indices or a bool mask [P]) summed into a single row [1, L, E]; no gates."""
        return RoutingCounts(
            self.counts_PLE[rows].sum(axis=0, keepdims=True),
            self.tokens_P[rows].sum(keepdims=True),
            self.experts_per_token,
        )


def concatenate(parts: list[RoutingCounts]) -> RoutingCounts:
    """The prompts of all parts, in order."""
    (experts_per_token,) = {part.experts_per_token for part in parts}
    gates = [part.gates_PLE for part in parts if part.gates_PLE is not None]
    assert len(gates) in (0, len(parts))
    return RoutingCounts(
        np.concatenate([part.counts_PLE for part in parts]),
        np.concatenate([part.tokens_P for part in parts]),
        experts_per_token,
        np.concatenate(gates) if gates else None,
    )
