"""Settings by category or batch id."""

import pytest

from dist_moe.data.named import by_batch
from dist_moe.errors import UserError
from dist_moe.ranges import Count, NonNegative
from tests.batches import batch_index

INDEX = batch_index([1, 1, 1], [True] * 3, ["a", "b", "c"], [None] * 3)  # ids id0, id1, id2, all of category c


def test_an_id_comes_before_its_category_and_who_is_not_named_has_the_default():
    assert by_batch(["c=2", "id1=0.5"], "s", INDEX, NonNegative, 1.0) == (2.0, 0.5, 2.0)
    assert by_batch(["id1=0.5", "c=2"], "s", INDEX, NonNegative, 1.0) == (2.0, 0.5, 2.0)
    assert by_batch(["id2=3"], "s", INDEX, Count, 1) == (1, 1, 3)
    assert by_batch([], "s", INDEX, Count, 1) == (1, 1, 1)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["c"], "train.weights: expected NAME=VALUE, such as privacy=2, got 'c'"),
        (["d=2"], "train.weights: 'd' is no category and no batch's id; the categories are c"),
        (["c=2", "c=3"], "train.weights: 'c' is given twice"),
        (["c=-1"], "train.weights: expected greater than or equal to 0, got 'c=-1'"),
        (["c=x"], "train.weights: expected a valid number, unable to parse string as a number, got 'c=x'"),
        (["c=nan"], "train.weights: expected "),
        (["c=inf"], "train.weights: expected less than inf, got 'c=inf'"),
    ],
)
def test_what_is_none_is_one_line(items, message):
    with pytest.raises(UserError) as error:
        by_batch(items, "train.weights", INDEX, NonNegative, 1.0)
    assert message in str(error.value)
