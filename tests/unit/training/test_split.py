"""Rows of a batch over ranks and micro-batches."""

import pytest

from dist_moe.data.tokens import Encoded, TokenBatch
from dist_moe.training.split import Split

LENGTHS = [30, 3, 10, 4, 9, 3, 5, 8]


def row(length: int, *, rejected: int = 0) -> Encoded:
    """Its first token says its length. `rejected`: how long it is with its rejected answer; 0: it has none."""
    worse = Encoded((length,), (4,) * (rejected - 1)) if rejected else None
    return Encoded((length,), (3,) * (length - 1), rejected=worse)


def seen(batches: list[TokenBatch]) -> list[list[int]]:
    """The lengths of each micro-batch's rows."""
    return [batch.input_ids[batch.own[:, 0], 0].tolist() for batch in batches]


def test_rows_of_like_length_are_padded_together() -> None:
    rows, split = [row(length) for length in LENGTHS], Split.of(len(LENGTHS), 2, None)
    ranks = [split.local(rows, rank, 0) for rank in (0, 1)]
    # 2 times 30 positions on one rank and 6 times 9 on the other, in place of 4 times 30 and 4 times 9
    assert [seen(batches) for batches in ranks] == [[[30, 10]], [[9, 8, 5, 4, 3, 3]]]
    assert [batches[0].input_ids.shape for batches in ranks] == [(2, 30), (6, 9)]


def test_what_ranks_do_at_the_same_time_is_of_like_length() -> None:
    rows, split = [row(length) for length in LENGTHS], Split.of(len(LENGTHS), 2, 2)
    ranks = [seen(split.local(rows, rank, 0)) for rank in (0, 1)]
    assert ranks == [[[30, 10], [5, 4]], [[9, 8], [3, 3]]]
    assert (split.num_micro_batches, split.micro_batch_size) == (2, 2)


def test_a_rejected_answer_is_beside_its_row_and_counts_as_its_length() -> None:
    rows = [row(4, rejected=20), row(19), row(5), row(6)]
    first, second = (Split.of(4, 2, 2).local(rows, rank, 0, pairs=True)[0] for rank in (0, 1))
    assert seen([first, second]) == [[4, 19], [6, 5]]
    assert first.pair[:, 0].tolist() == [0, -1, 0]
    assert first.input_ids.shape == (3, 20)


@pytest.mark.parametrize("num_rows", [0, 1, 3])
def test_ranks_have_the_same_number_of_micro_batches(num_rows: int) -> None:
    split = Split.of(3, 2, 1)
    ranks = [split.local([row(5)] * num_rows, rank, 0) for rank in (0, 1)]
    assert [len(batches) for batches in ranks] == [2, 2]
    assert sum(int(batch.own.any(1).sum()) for batches in ranks for batch in batches) == num_rows
