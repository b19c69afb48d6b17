"""RoutingCounts: routing counts per prompt, from which everything else is computed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class RoutingCounts:
    """For each prompt, how often each expert was among the top-k."""

    counts_PLE: np.ndarray
    """int64 [P, L, E]: number of prompt p's counted tokens that layer l routed to expert e."""
    tokens_P: np.ndarray
    """int64 [P]: number of counted tokens of each prompt."""
    experts_per_token: int
    """The model's k: the most that one counted token adds to a layer."""
    tables: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Further measurements of the prompts, by name, with P as the first axis; docs/formats.md lists them."""

    def __post_init__(self) -> None:
        assert all(len(table) == self.num_prompts for table in self.tables.values())
        assert self.counts_PLE.dtype == self.tokens_P.dtype == np.int64
        assert self.counts_PLE.ndim == 3
        assert self.tokens_P.shape == self.counts_PLE.shape[:1]
        assert self.counts_PLE.min(initial=0) >= 0
        largest_P = self.counts_PLE.max(axis=(1, 2), initial=0)
        assert (largest_P <= self.tokens_P).all(), "an expert is counted twice for one token"
        assert (layer_sums(self.counts_PLE, self.tokens_P) <= self.experts_per_token * self.tokens_P[:, None]).all()

    @property
    def num_prompts(self) -> int:
        return self.counts_PLE.shape[0]

    def of(self, rows: np.ndarray | slice) -> "RoutingCounts":
        """The given prompts (indices, a bool mask [P] or a slice)."""
        tables = {name: table[rows] for name, table in self.tables.items()}
        return RoutingCounts(self.counts_PLE[rows], self.tokens_P[rows], self.experts_per_token, tables)

    def pooled(self, rows: np.ndarray) -> "RoutingCounts":
        """Counts of the given prompts (indices or a bool mask [P]) summed into a single row [1, L, E]; no tables."""
        return RoutingCounts(
            self.counts_PLE[rows].sum(axis=0, keepdims=True),
            self.tokens_P[rows].sum(keepdims=True),
            self.experts_per_token,
        )


def layer_sums(counts_PLE: np.ndarray, tokens_P: np.ndarray) -> np.ndarray:
    """Sums over the experts of each layer, int [P, L].

    Args:
        counts_PLE: any int, each from 0 to its prompt's number of tokens.
        tokens_P: int64 [P].
    """
    if counts_PLE.shape[2] * int(tokens_P.max(initial=0)) > np.iinfo(counts_PLE.dtype).max:
        counts_PLE = counts_PLE.astype(np.int64)
    return np.einsum("ple->pl", counts_PLE)  # a quarter of the time of .sum(axis=2)


def concatenate(parts: list[RoutingCounts]) -> RoutingCounts:
    """The prompts of all parts, in order."""
    (experts_per_token,) = {part.experts_per_token for part in parts}
    (names,) = {frozenset(part.tables) for part in parts}
    return RoutingCounts(
        np.concatenate([part.counts_PLE for part in parts]),
        np.concatenate([part.tokens_P for part in parts]),
        experts_per_token,
        {name: np.concatenate([part.tables[name] for part in parts]) for name in sorted(names)},
    )
