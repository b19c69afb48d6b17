"""What the first rank does alone may take longer than a process group waits in one exchange."""

import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from dist_moe.errors import UserError
from dist_moe.parallel.alone import alone
from dist_moe.parallel.comm import GroupComm
from dist_moe.parallel.launch import together
from tests.ranks.harness import run_ranks

LIMIT = timedelta(seconds=2)
LONG_S = 5


def short_of_patience(comm):
    return GroupComm(dist.new_group(timeout=LIMIT), comm.device)


def works_long(comm):
    others, done = short_of_patience(comm), []
    alone(others, lambda: (time.sleep(LONG_S), done.append(others.rank)))
    others.barrier()
    return done


def fails_late(comm):
    def work():
        time.sleep(LONG_S)
        raise UserError("the judge's answer cannot be read")

    with pytest.raises(UserError) as error:
        alone(short_of_patience(comm), work)
    return str(error.value)


def without_it(comm):
    """How rank 0 had worked while the others waited in the next exchange."""
    others = short_of_patience(comm)

    def work():
        with together(others):
            if comm.rank == 0:
                time.sleep(LONG_S)

    with pytest.raises(RuntimeError):
        work()


def all_of(comm):
    found = works_long(comm), fails_late(comm)
    without_it(comm)
    return found


def test_the_others_wait_longer_than_the_groups_time_limit():
    assert run_ranks(2, all_of) == [
        ([0], "the judge's answer cannot be read"),
        ([], "the judge's answer cannot be read"),
    ]
