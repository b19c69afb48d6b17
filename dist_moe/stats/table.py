"""Risk tables: how much more often tokens of unsafe prompts are routed to an expert than tokens of safe ones.

The denominator is the number of the arm's counted tokens, not tokens times k: a layer's rates sum to k over its
experts, and its risk_diff to 0. Sums of counts are exact until the single division, so a table depends neither on the
order of prompts nor on the number of processes that counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dist_moe.errors import UserError
from dist_moe.stats.counts import RoutingCounts


@dataclass(frozen=True, slots=True)
class RiskTable:
    """Rates of both arms for each batch; one row if all prompts are pooled."""

    a_safe_n_BLE: np.ndarray
    """float64 [B, L, E]: fraction of the counted tokens of the batch's safe prompts for which an expert is in the
    top-k."""
    a_unsafe_n_BLE: np.ndarray
    """float64 [B, L, E]: the same for its unsafe prompts."""

    def __post_init__(self) -> None:
        assert self.a_safe_n_BLE.dtype == self.a_unsafe_n_BLE.dtype == np.float64
        assert self.a_safe_n_BLE.ndim == 3
        assert self.a_safe_n_BLE.shape == self.a_unsafe_n_BLE.shape

    @property
    def risk_diff_BLE(self) -> np.ndarray:
        return self.a_unsafe_n_BLE - self.a_safe_n_BLE


def risk_table(
    counts: RoutingCounts,
    unsafe_P: np.ndarray,
    batch_of_P: np.ndarray,
    num_batches: int,
    batch_names: Sequence[str],
) -> RiskTable:
    """Rates of each batch.

    Args:
        counts: of P prompts.
        unsafe_P: bool [P].
        batch_of_P: int [P], each in [0, num_batches).
        num_batches: B.
        batch_names: names of the batches for errors, see `dist_moe.stats.names.batch_name`.

    Raises:
        UserError: an arm of a batch has no counted token, so that its rates do not exist.
    """
    assert len(batch_names) == num_batches
    arms = arm_counts(counts.counts_PLE, counts.tokens_P, unsafe_P, batch_of_P, num_batches)
    return rates(*arms, batch_names.__getitem__)


def rates(counts_ABLE: np.ndarray, tokens_AB: np.ndarray, name_of: Callable[[int], str]) -> RiskTable:
    """Rates of each batch, from its `arm_counts`. `name_of` is asked for the name of a batch that has none.

    Raises:
        UserError: as `risk_table`.
    """
    empty = np.argwhere(tokens_AB.T == 0)
    if len(empty):
        batch, arm = empty[0].tolist()
        raise UserError(
            f"{name_of(batch)}: its {('safe', 'unsafe')[arm]} prompts have no counted token, so they have no rate: "
            "choose another analysis.tokens, or give these rows what it counts: a response, or with tokens: span a span"
        )
    rates_ABLE = counts_ABLE / tokens_AB[:, :, None, None]
    return RiskTable(rates_ABLE[0], rates_ABLE[1])


def arm_counts(
    counts_PLE: np.ndarray, tokens_P: np.ndarray, unsafe_P: np.ndarray, batch_of_P: np.ndarray, num_batches: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over the prompts of each arm (safe, unsafe) of each batch: of counts, int64 [2, B, L, E], and of tokens,
    int64 [2, B].

    Counts may be of any int type. A batch's are added as a matrix product: sums of whole numbers, far below 2^53, are
    exact in float64 whatever their order.
    """
    assert unsafe_P.dtype == np.bool_
    assert unsafe_P.shape == batch_of_P.shape == tokens_P.shape == counts_PLE.shape[:1]
    assert ((batch_of_P >= 0) & (batch_of_P < num_batches)).all()
    order = np.argsort(batch_of_P, kind="stable")
    values_PX = counts_PLE.reshape(len(counts_PLE), -1)
    if (np.diff(batch_of_P) < 0).any():
        values_PX = values_PX[order]
    arms_AP = np.stack([~unsafe_P, unsafe_P])[:, order].astype(np.float64)
    sums_BAX = np.empty((num_batches, 2, values_PX.shape[1]))
    starts = np.searchsorted(batch_of_P[order], np.arange(num_batches + 1)).tolist()
    for batch, rows in enumerate(map(slice, starts, starts[1:])):
        np.matmul(arms_AP[:, rows], values_PX[rows].astype(np.float64), out=sums_BAX[batch])
    tokens_AB = np.zeros((2, num_batches), np.int64)
    np.add.at(tokens_AB, (unsafe_P.astype(np.intp), batch_of_P), tokens_P)
    counts_ABX = sums_BAX.transpose(1, 0, 2).astype(np.int64, order="C")
    return counts_ABX.reshape(2, num_batches, *counts_PLE.shape[1:]), tokens_AB


def pooled_risk(counts: RoutingCounts, unsafe_P: np.ndarray) -> RiskTable:
    """Rates of all prompts pooled, with the same weight for each counted token: one row.

    Raises:
        UserError: an arm has no counted token.
    """
    return risk_table(counts, unsafe_P, np.zeros(counts.num_prompts, np.intp), 1, ("all prompts",))


class RateSums:
    """Sums over batches, from which the rates of all prompts pooled and the mean of the batches' rates follow."""

    def __init__(self, num_layers: int, num_experts: int, experts_per_token: int) -> None:
        self._experts_per_token, self._num_batches = experts_per_token, 0
        self._counts_ALE = np.zeros((2, num_layers, num_experts), np.int64)
        self._tokens_A = np.zeros(2, np.int64)
        self._rates_ALE = np.zeros((2, num_layers, num_experts))
        self.empty: int | None = None
        """The first batch with an arm without a counted token: the mean does not exist."""

    def add(self, counts_ABLE: np.ndarray, tokens_AB: np.ndarray) -> None:
        """Add the next batches, from their `arm_counts`."""
        if self.empty is None and not tokens_AB.all():
            self.empty = self._num_batches + int(np.argmin(tokens_AB.all(axis=0)))
        rates_ABLE = counts_ABLE / np.maximum(tokens_AB, 1)[:, :, None, None]
        for batch in range(tokens_AB.shape[1]):  # one by one, so that the sum does not depend on what is added together
            self._rates_ALE += rates_ABLE[:, batch]
        self._counts_ALE += counts_ABLE.sum(axis=1)
        self._tokens_A += tokens_AB.sum(axis=1)
        self._num_batches += tokens_AB.shape[1]

    def pooled(self) -> RiskTable:
        """`pooled_risk` of all prompts."""
        arms = RoutingCounts(self._counts_ALE, self._tokens_A, self._experts_per_token)
        return pooled_risk(arms, np.array([False, True]))

    def mean(self) -> RiskTable:
        """Mean of the batches' rates, with the same weight for each batch: one row."""
        assert self.empty is None
        safe_LE, unsafe_LE = self._rates_ALE / self._num_batches
        return RiskTable(safe_LE[None], unsafe_LE[None])
