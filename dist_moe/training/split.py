"""Splits a batch's rows into the micro-batches of each rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dist_moe.data.batches import micro_batches, shard_rows
from dist_moe.data.tokens import Encoded, TokenBatch, collate


@dataclass(frozen=True, slots=True)
class Split:
    """How a batch's rows are split into micro-batches on `num_ranks` ranks; their number is the same on each rank."""

    batch_size: int
    num_ranks: int
    micro_batch_size: int
    num_micro_batches: int

    @classmethod
    def of(cls, batch_size: int, num_ranks: int, micro_batch_size: int | None) -> Split:
        """At most `micro_batch_size` rows in a micro-batch; None: all of a rank's rows."""
        rows_per_rank = -(-batch_size // num_ranks)
        size = min(micro_batch_size or rows_per_rank, rows_per_rank)
        return cls(batch_size, num_ranks, size, -(-rows_per_rank // size))

    def local(self, rows: list[Encoded], rank: int, pad_id: int, *, pairs: bool = False) -> list[TokenBatch]:
        """One rank's micro-batches of a batch. A rank with fewer rows gets micro-batches without real tokens.

        With `pairs`, a row's rejected answer is in its micro-batch.
        """
        mine = [rows[i] for i in shard_rows(len(rows), rank, self.num_ranks)]
        parts = [list(part) for part in micro_batches(mine, self.micro_batch_size)]
        parts += [[]] * (self.num_micro_batches - len(parts))
        return [collate(part, pad_id, pairs=pairs) for part in parts]


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of all batches, and how one rank takes them."""

    of: Callable[[int], list[Encoded]]
    """All rows of a batch."""
    split: Split
    rank: int
    pad_id: int
    pairs: bool = False
    """Whether rejected answers are included."""

    def local(self, rows: list[Encoded]) -> list[TokenBatch]:
        """This rank's micro-batches of a batch's rows."""
        return self.split.local(rows, self.rank, self.pad_id, pairs=self.pairs)
