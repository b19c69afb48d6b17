"""Rows laid end to end: the same rows as padded ones, in fewer positions."""

from dataclasses import fields, replace

import pytest
import torch

from dist_moe.data.batches import even_parts, token_budget
from dist_moe.data.tokens import Encoded, collate
from dist_moe.training.split import Split

ROWS = [
    Encoded((5, 6), (7, 8), unsafe=True, span=(1, 3), content=((0, 1),), rejected=Encoded((5, 6), (9,), unsafe=True)),
    Encoded((1,), ()),
    Encoded((2, 3, 4), (5, 6, 7, 8), gap=(5, 6)),
    Encoded((3,), (9,), rejected=Encoded((3,), (2, 2, 2, 2, 2))),
]


@pytest.mark.parametrize("pairs", [False, True])
def test_each_row_is_as_it_is_padded(pairs: bool) -> None:
    padded, packed = (collate(ROWS, 0, pairs=pairs, packed=way) for way in (False, True))
    lengths = [row.num_tokens for row in ROWS] + [row.rejected.num_tokens for row in ROWS if row.rejected and pairs]
    assert packed.input_ids.shape == (1, sum(lengths))
    assert packed.num_live == packed.input_ids.numel() == padded.num_live
    assert packed.num_rows == padded.num_rows == len(lengths)
    for field in fields(padded):
        if field.name not in ("predicting", "num_live", "num_rows", "is_packed"):
            found = getattr(packed, field.name)[0].split(lengths)
            for row, values in zip(getattr(padded, field.name), found, strict=True):
                assert row[: len(values)].tolist() == values.tolist(), field.name
    assert torch.equal(packed.begins, torch.tensor([[place == 0 for n in lengths for place in range(n)]]))


def test_no_row_predicts_the_next_ones_first_token() -> None:
    rows = [replace(ROWS[0], prompt_ids=(), response_ids=(7, 8)), Encoded((), (4, 5)), ROWS[2]]  # all of it is trained
    for packed in (False, True):
        batch = collate(rows, 0, packed=packed)
        targets = batch.labels.flatten().roll(-1)[batch.predicting]
        assert targets.tolist() == [8, 5, 5, 6, 8]
        assert batch.input_ids.flatten()[batch.predicting].tolist() == [7, 4, 4, 5, 7]
        assert int((batch.labels != -100).sum()) == 5


def test_transformers_is_told_where_rows_begin_and_of_no_mask() -> None:
    assert collate(ROWS, 0).inputs.keys() == {"input_ids", "use_cache"}
    inputs = collate(ROWS, 0, packed=True).inputs
    assert inputs.keys() == {"input_ids", "use_cache", "position_ids"}
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 6, 0, 1]]
    assert collate([], 7, packed=True).inputs["input_ids"].tolist() == [[7]]
    assert not collate([], 7, packed=True).live.any()


def test_passes_are_filled_with_tokens_in_place_of_padding() -> None:
    lengths = [5, 20, 5, 7, 1]
    assert token_budget(lengths, 18, packed=True) == [[1], [3, 0, 2, 4]]  # padded, [3, 0], [2, 4]
    assert token_budget(lengths, 17, packed=True) == [[1], [3, 0, 2], [4]]
    assert token_budget(lengths, 18, most_rows=2, packed=True) == [[1], [3, 0], [2, 4]]
    assert even_parts([9, 8, 1, 1, 1, 1], 2, 6, packed=True) == [[0], [1, 2, 3, 4, 5]]


def test_ranks_share_the_tokens_of_a_batch() -> None:
    rows = [Encoded((1,), (2,) * (n - 1)) for n in (30, 3, 10, 4, 9, 3, 5, 8)]
    split = Split.of(len(rows), 2, None, packed=True)
    shapes = [split.local(rows, rank, 0)[0].input_ids.shape for rank in (0, 1)]
    assert shapes == [(1, 40), (1, 32)]  # padded: 2 times 30, and 6 times 9
    paired = [replace(rows[0], rejected=rows[2]), *rows[1:]]
    sizes = [split.local(paired, rank, 0, pairs=True)[0].input_ids.shape[1] for rank in (0, 1)]
    assert sizes == [40, 42]  # the longest row with its rejected answer is a part
