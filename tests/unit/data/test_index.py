"""The one value for which prompts are in which batch, compared with plain lists of batches."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_moe.data.index import BatchIndex
from dist_moe.stats.design import Kinship
from tests.batches import batch_index

ROWS = st.tuples(st.booleans(), st.sampled_from("xyz"), st.sampled_from([None, "p", "q"]))
BATCHES = st.lists(st.lists(ROWS, max_size=5), min_size=1, max_size=6)
"""Of each row: whether it is unsafe, its text, and its pair."""


def index_of(batches) -> BatchIndex:
    rows = [row for batch in batches for row in batch]
    unsafe, texts, pairs = ([row[i] for row in rows] for i in range(3))
    return batch_index([len(batch) for batch in batches], unsafe, texts, pairs)


@given(BATCHES)
def test_every_prompt_is_where_the_batches_have_it(batches) -> None:
    index, rows = index_of(batches), [row for batch in batches for row in batch]
    assert (len(index), index.num_prompts) == (len(batches), len(rows))
    assert [rows[of_batch] for of_batch in index.each()] == [rows[index.rows(i)] for i in range(len(index))] == batches
    assert index.batch_of_P.tolist() == [number for number, batch in enumerate(batches) for _ in batch]
    assert index.place_P.tolist() == [place for batch in batches for place in range(len(batch))]
    assert index.sizes_B.tolist() == list(map(len, batches))
    assert index.unsafe_P.tolist() == [unsafe for unsafe, *_ in rows]


@given(BATCHES, st.data())
def test_some_batches_are_a_value_of_their_own(batches, data) -> None:
    index = index_of(batches)
    start = data.draw(st.integers(0, len(batches)))
    stop = data.draw(st.integers(start, len(batches)))
    some, rows = index.of(range(start, stop)), [row for batch in batches[start:stop] for row in batch]
    assert some.first == start
    assert some.batch_of_P.tolist() == [number for number, batch in enumerate(batches[start:stop]) for _ in batch]
    assert some.unsafe_P.tolist() == [unsafe for unsafe, *_ in rows]
    assert some.names == index.names[start:stop]
    assert some.kinship.cluster_P.tolist() == index.kinship.cluster_P[index.rows(range(start, stop))].tolist()
    assert some.kinship.pair_P.tolist() == index.kinship.pair_P[index.rows(range(start, stop))].tolist()
    assert [pair != 0 for pair in some.kinship.pair_P] == [pair is not None for *_, pair in rows]
    assert some.kinship.batch_P.tolist() == some.batch_of_P.tolist()
    again = some.of(range(len(some) // 2, len(some)))
    assert (again.first, again.ids) == (start + len(some) // 2, index.ids[start + len(some) // 2 : stop])


def test_the_last_batch_alone_has_what_it_had() -> None:
    """One case of the above that every mistake of place shows in."""
    index = index_of(
        [[(True, "x", None), (False, "y", "p")], [(False, "z", "q"), (False, "x", "p"), (True, "z", None)]]
    )
    last = index.of(range(1, 2))
    assert (last.prompt_ids, last.unsafe_P.tolist()) == (("row 2", "row 3", "row 4"), [False, False, True])
    assert last.kinship.cluster_P.tolist() == index.kinship.cluster_P[2:].tolist()
    assert last.kinship.pair_P.tolist() == index.kinship.pair_P[2:].tolist() != index.kinship.pair_P[:3].tolist()


def test_names_count_batches_in_the_whole_analysis() -> None:
    index = index_of([[(True, "x", None)], [(False, "x", None)], [(True, "y", None)]])
    assert index.of(range(1, 3)).names == ("batch 1 (c, id1)", "batch 2 (c, id2)")


def test_rows_of_one_prompt_are_kin_and_of_an_unknown_one_are_not() -> None:
    index = index_of([[(True, "x", None), (False, "x", None), (True, "y", None)]])
    one, other, third = index.kinship.cluster_P.tolist()
    assert one == other != third
    unknown = dataclasses.replace(index, cluster_P=None, pair_P=None)
    assert (index.is_kinship_known, unknown.is_kinship_known) == (True, False)
    assert len(set(unknown.kinship.cluster_P.tolist())) == 3
    assert not unknown.kinship.pair_P.any()


@pytest.mark.parametrize(
    "change",
    [
        {"ids": ("id0",)},
        {"categories": ("c",)},
        {"starts_B1": np.array([0, 2, 1])},
        {"starts_B1": np.array([0, 3, 2])},
        {"starts_B1": np.array([0, 1, 3])},
        {"prompt_ids": ("row 0",)},
        {"unsafe_P": np.array([1, 0])},
        {"cluster_P": np.array([1, 2])},
        {"pair_P": None},
    ],
)
def test_what_does_not_fit_together_is_no_index(change) -> None:
    index = index_of([[(True, "x", None)], [(False, "x", None)]])
    with pytest.raises(AssertionError):
        dataclasses.replace(index, **change)


def test_an_index_of_sizes_knows_what_it_was_given() -> None:
    kinship = Kinship.of_texts(["a", "b", "a"], ["p", None, "p"], np.array([0, 1, 1]))
    index = BatchIndex.of_sizes(
        [1, 2],
        ids=["i", "j"],
        categories=["c", "d"],
        prompt_ids=["q", "r", "s"],
        unsafe=[True, False, True],
        kinship=kinship,
    )
    assert (index.prompt_ids, index.categories) == (("q", "r", "s"), ("c", "d"))
    assert index.kinship.pair_P.tolist() == kinship.pair_P.tolist()
    assert index.kinship.batch_P.tolist() == [0, 1, 1]
