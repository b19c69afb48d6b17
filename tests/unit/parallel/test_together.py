"""What ranks put into a phase is compared, and the first difference is told; without processes."""

import pytest

from dist_moe.errors import UserError
from dist_moe.parallel.launch import together


class Others:
    """Rank 0 of several; `answers` are what the others send."""

    def __init__(self, *answers):
        self.answers = answers

    def gather(self, value):
        return [value, *self.answers]


def phase(comm, facts, message=None):
    """What the phase is refused with."""
    try:
        with together(comm) as same:
            same |= facts
            if message:
                raise UserError(message)
    except UserError as error:
        return str(error)
    pytest.fail("not refused")


def test_ranks_differ_in_the_first_name_that_differs():
    facts = {"seed": 1, "train.lr": 0.1, "rows": 3}
    others = Others(
        (None, {"seed": "1", "train.lr": "0.1", "rows": "3"}), (None, {"seed": "1", "rows": "4", "train.lr": "2"})
    )
    assert phase(others, facts).startswith("ranks differ: train.lr is 0.1 on rank 0, 2 on rank 2; ")


def test_where_ranks_differ_is_told_before_what_followed_from_it():
    message = "the masks were made from other data"
    assert phase(Others((message, {"rows": "4"})), {"rows": 3, "store": "a"}).startswith(
        "ranks differ: rows is 3 on rank 0"
    )
    assert phase(Others((None, {"rows": "4"})), {"rows": 3}, message).startswith("ranks differ: rows is 3 on rank 0")


def test_a_rank_that_failed_before_it_knew_ranks_differ_or_not():
    assert phase(Others(("no file", {})), {"rows": 3}) == "rank 1: no file"
    assert phase(Others(("no file", {})), {"rows": 3}, "no file") == "no file"


def test_the_same_on_all_ranks_passes():
    with together(Others((None, {"path": "'a'"}))) as same:
        same["path"] = "a"


def test_long_values_are_cut_where_ranks_differ():
    said = phase(Others((None, {"refusal": repr("y" * 5000)})), {"refusal": "x" * 5000})
    assert len(said) < 400
