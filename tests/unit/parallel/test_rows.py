"""Rows spread over ranks, with ranks that are threads of one process: each row's result once, in the rows' order."""

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_moe.errors import UserError
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.rows import map_rows

CPU = torch.device("cpu")
KINDS = {"number": (torch.int64, ()), "share": (torch.float64, (2,))}


class ThreadComm:
    """One rank of a job of threads: what `map_rows` asks of a group."""

    device = CPU

    def __init__(self, rank, size, shared):
        self.rank, self.size, self.shared = rank, size, shared

    def gather(self, value):
        values = self.shared.setdefault("values", {})
        values[self.rank] = value
        self.shared["barrier"].wait(10)
        found = [values[rank] for rank in range(self.size)]
        self.shared["barrier"].wait(10)
        return found

    def sum_(self, tensor):
        tensor.copy_(torch.stack([other.clone() for other in self.gather(tensor.clone())]).sum(0))
        return tensor


def on_ranks(size, work):
    """What `work(comm)` gives or raises on each rank."""
    shared, answers = {"barrier": threading.Barrier(size)}, [None] * size

    def run(rank):
        try:
            answers[rank] = work(ThreadComm(rank, size, shared))
        except UserError as error:
            answers[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return answers


def mapped(comm, rows, budget=10, sharing=1):
    """What is found, and this rank's passes. A row is a number, and as long."""
    passes = []

    def function(some):
        passes.append(list(some))
        numbers = torch.tensor([*some, 99])  # a line more than rows, as of a dummy row
        return {"number": numbers, "share": torch.stack([numbers / 3, -numbers / 7], 1).double()}

    found = map_rows(rows, function, comm, results=KINDS, length=lambda row: row, budget=budget, sharing=sharing)
    return found, passes


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 4), st.booleans())
def test_every_row_has_its_result_in_its_place_on_every_rank(rows, size, is_shared) -> None:
    sharing = size if is_shared else 1
    alone, passes = mapped(SoloComm(CPU), rows)
    assert alone["number"].tolist() == rows
    numbers = torch.tensor(rows, dtype=torch.int64)
    assert torch.equal(alone["share"], torch.stack([numbers / 3, -numbers / 7], 1).double())
    assert all(len(each) * max(each) <= 10 for each in passes)
    answers = on_ranks(size, lambda comm: mapped(comm, rows, sharing=sharing))
    for found, _ in answers:
        assert all(torch.equal(found[name], alone[name]) for name in KINDS)
    theirs = [each for _, of_rank in answers for each in of_rank if each]
    assert sorted(theirs) == sorted(passes), "the passes depend on the number of ranks"
    if is_shared:
        assert len({len(of_rank) for _, of_rank in answers}) == 1, "ranks that share experts run unequal passes"


def test_no_rows_are_no_results() -> None:
    found, passes = mapped(SoloComm(CPU), [])
    assert (found["share"].shape, passes) == ((0, 2), [])


@pytest.mark.timeout(60)
def test_a_failure_on_one_rank_is_one_line_on_all() -> None:
    def work(comm):
        def function(some):
            if comm.rank == 1:
                raise UserError("no such file")
            return {"number": torch.tensor(some)}

        return map_rows([1, 2, 3], function, comm, results={"number": KINDS["number"]}, length=lambda row: 1, budget=1)

    assert [str(answer) for answer in on_ranks(3, work)] == ["rank 1: no such file"] * 3


def test_progress_is_told_of_all_ranks_rows() -> None:
    told = []
    on_ranks(
        2,
        lambda comm: map_rows(
            [1] * 5,
            lambda some: {"number": torch.tensor(some)},
            comm,
            results={"number": KINDS["number"]},
            length=lambda row: 1,
            budget=2,
            progress=told.append if comm.rank == 0 else lambda _: None,
        ),
    )
    assert told == [4, 1]
