"""Rows in flat arrays are the rows that went in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dist_moe.data.encoded import EncodedRows
from dist_moe.data.tokens import Encoded

WORSE = Encoded((1, 2), (7, 8, 9), unsafe=True, content=((0, 1),), gap=(3, 4))
ROWS = [
    Encoded((1, 2), (3,), unsafe=True, span=(0, 2), content=((0, 1),), gap=(2, 3), alone_ids=(1,), rejected=WORSE),
    Encoded((200_000,), ()),
    Encoded((4, 5, 6, 7), (8, 9), content=((0, 1), (2, 4)), alone_ids=(4, 5)),
    Encoded((5,), (1,), span=(1, 2), rejected=replace(WORSE, alone_ids=(3, 3))),
]


def test_rows_are_what_went_in() -> None:
    rows = EncodedRows.of(ROWS)
    assert [*rows] == ROWS
    assert len(rows) == 4
    assert (rows[1], rows[-1], rows[np.int64(2)]) == (ROWS[1], ROWS[3], ROWS[2])  # type: ignore[index]
    assert rows[1:] == tuple(ROWS[1:])
    with pytest.raises(IndexError):
        rows[4]


def test_numbers_of_tokens_are_without_rejected_answers() -> None:
    assert EncodedRows.of(ROWS).num_tokens_R.tolist() == [3, 1, 6, 2]
    assert EncodedRows.of(ROWS).column("response").tolist() == [1, 0, 2, 1]


def test_no_rows() -> None:
    assert [*EncodedRows.of([])] == []
    assert EncodedRows.of([]).num_tokens_R.tolist() == []
