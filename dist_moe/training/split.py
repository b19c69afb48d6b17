"""Splits a batch's rows into the micro-batches of each rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dist_moe.data.batches import even_parts
from dist_moe.data.tokens import Encoded, TokenBatch, collate


@dataclass(frozen=True, slots=True)
class Split:
    """How a batch's rows are split into micro-batches on `num_ranks` ranks; their number is the same on each rank.

    Rows of like length are together: of all ways to cut the rows, sorted by length, into so many parts, the one with
    the smallest largest part, in positions. The longest rows come first, and what ranks do at the same time is of like
    length.
    """

    num_ranks: int
    micro_batch_size: int
    """Rows in a micro-batch, if all have equally many."""
    num_micro_batches: int
    most_rows: int
    """No micro-batch has more rows."""
    packed: bool = False
    """Whether the rows of a micro-batch are laid end to end, and not padded."""

    @classmethod
    def of(cls, batch_size: int, num_ranks: int, micro_batch_size: int | None, *, packed: bool = False) -> Split:
        """At most `micro_batch_size` rows in a micro-batch; None: one micro-batch, and a rank with shorter rows may
        get more of them."""
        rows_per_rank = -(-batch_size // num_ranks)
        size = min(micro_batch_size or rows_per_rank, rows_per_rank)
        return cls(num_ranks, size, -(-rows_per_rank // size), micro_batch_size or batch_size, packed)

    def local(self, rows: list[Encoded], rank: int, pad_id: int, *, pairs: bool = False) -> list[TokenBatch]:
        """One rank's micro-batches of a batch. A rank with fewer parts gets micro-batches without real tokens.

        With `pairs`, a row's rejected answer is in its micro-batch.
        """
        lengths = [self._length(row, pairs=pairs) for row in rows]
        parts = even_parts(lengths, self.num_ranks * self.num_micro_batches, self.most_rows, packed=self.packed)
        mine = parts[rank :: self.num_ranks]
        mine += [[]] * (self.num_micro_batches - len(mine))
        return [collate([rows[i] for i in part], pad_id, pairs=pairs, packed=self.packed) for part in mine]

    def _length(self, row: Encoded, *, pairs: bool) -> int:
        """What a row adds to a micro-batch: of padded rows with their rejected answers the longer counts."""
        worse = row.rejected if pairs else None
        if worse is None:
            return row.num_tokens
        return row.num_tokens + worse.num_tokens if self.packed else max(row.num_tokens, worse.num_tokens)


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
