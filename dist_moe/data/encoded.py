"""Rows as token ids in a few flat arrays: a sequence of `Encoded` that takes little memory, and can stay on disk.

Legend: R rows; N sequences: those of the rows, then those of their rejected answers; T ids; C ranges of content.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, overload

import numpy as np

from dist_moe.data.tokens import Encoded

NONE = -1
COLUMNS = (
    "start", "prompt", "response", "alone", "unsafe", "span_start", "span_stop", "gap_start", "gap_stop",
    "content_start", "content_stop", "rejected",
)  # fmt: skip
"""Of `table_NK`: where a sequence's ids begin; how many are prompt, response and the prompt alone; its label; its
ranges; its rows of `content_C2`; and the sequence of its rejected answer. `NONE` stands for None."""


class Ids(Protocol):
    """int32 [T]: in memory, or in a file of which slices are read."""

    def __getitem__(self, places: Any, /) -> np.ndarray: ...


@dataclass(frozen=True, slots=True, eq=False)
class EncodedRows(Sequence[Encoded]):
    """R rows, each of which is made when it is asked for."""

    num_rows: int
    table_NK: np.ndarray
    """int64 [N, K]: `COLUMNS`."""
    content_C2: np.ndarray
    """int64 [C, 2]: half-open ranges."""
    ids_T: Ids
    """Of each sequence in turn: prompt, response, prompt alone."""

    @classmethod
    def of(cls, rows: Iterable[Encoded]) -> EncodedRows:
        """The same rows."""
        rows = list(rows)
        sequences = [*rows, *(row.rejected for row in rows if row.rejected is not None)]
        parts = [ids for row in sequences for ids in (row.prompt_ids, row.response_ids, row.alone_ids or ())]
        table, num_ids, num_content, num_rejected = list[tuple[int, ...]](), 0, 0, 0
        for row in sequences:
            alone = NONE if row.alone_ids is None else len(row.alone_ids)
            rejected = NONE if row.rejected is None else len(rows) + num_rejected
            content = num_content, num_content + len(row.content)
            ranges = (*(row.span or (NONE, NONE)), *(row.gap or (NONE, NONE)), *content)
            numbers = len(row.prompt_ids), len(row.response_ids), alone, row.unsafe
            table.append((num_ids, *numbers, *ranges, rejected))
            num_ids += row.num_tokens + max(alone, 0)
            num_content, num_rejected = content[1], num_rejected + (row.rejected is not None)
        return cls(
            num_rows=len(rows),
            table_NK=np.array(table, np.int64).reshape(-1, len(COLUMNS)),
            content_C2=np.array([each for row in sequences for each in row.content], np.int64).reshape(-1, 2),
            ids_T=np.fromiter(chain.from_iterable(parts), np.int32, num_ids),
        )

    def __len__(self) -> int:
        return self.num_rows

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Encoded, ...]: ...
    def __getitem__(self, index: int | slice) -> Encoded | tuple[Encoded, ...]:
        some = range(self.num_rows)[index]  # raises IndexError
        return self._sequence(some) if isinstance(some, int) else tuple(map(self._sequence, some))

    def _sequence(self, number: int) -> Encoded:
        at = dict(zip(COLUMNS, self.table_NK[number].tolist(), strict=True))
        num_prompt, num_kept = at["prompt"], at["prompt"] + at["response"]
        ids = tuple(self.ids_T[at["start"] : at["start"] + num_kept + max(at["alone"], 0)].tolist())
        content = self.content_C2[at["content_start"] : at["content_stop"]].tolist()
        return Encoded(
            prompt_ids=ids[:num_prompt],
            response_ids=ids[num_prompt:num_kept],
            unsafe=bool(at["unsafe"]),
            span=None if at["span_start"] == NONE else (at["span_start"], at["span_stop"]),
            content=tuple((start, stop) for start, stop in content),
            gap=None if at["gap_start"] == NONE else (at["gap_start"], at["gap_stop"]),
            alone_ids=None if at["alone"] == NONE else ids[num_kept:],
            rejected=None if at["rejected"] == NONE else self._sequence(at["rejected"]),
        )

    def column(self, name: str) -> np.ndarray:
        """int64 [R]: one of `COLUMNS`."""
        return self.table_NK[: self.num_rows, COLUMNS.index(name)]

    @property
    def num_tokens_R(self) -> np.ndarray:
        """int64 [R]: `Encoded.num_tokens`."""
        return self.column("prompt") + self.column("response")
