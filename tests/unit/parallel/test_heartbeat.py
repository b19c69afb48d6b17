"""Who is lost is found by the ranks that are left; ranks are threads here, which share a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import torch.distributed as dist

from dist_moe.parallel import heartbeat as module
from dist_moe.parallel.heartbeat import Heartbeat

LIMIT_S, EVERY_S = 1.5, 0.15
HANG_S = 60.0


class Rank(Heartbeat):
    """Keeps its last line, and does not end the process."""

    def __init__(self) -> None:
        super().__init__()
        self.limit_s = LIMIT_S
        self.line: str | None = None

    def _end(self, line: str) -> None:
        self.line = line
        self._over.set()


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Rank]]]:
    """Ranks of a job that begin to beat."""
    monkeypatch.setattr(module, "EVERY_S", EVERY_S)
    store = dist.HashStore()
    with ExitStack() as stack:

        def begin(num_ranks: int, *numbers: int) -> list[Rank]:
            ranks = [Rank() for _ in numbers]
            for number, rank in zip(numbers, ranks, strict=True):
                stack.enter_context(rank.beating(store, number, num_ranks))
            return ranks

        yield begin


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + HANG_S
    while not holds():
        assert time.monotonic() < end, "hang"
        time.sleep(0.01)


def test_ranks_that_live_lose_nobody(job: Callable[..., list[Rank]]) -> None:
    ranks = job(3, 0, 1, 2)
    time.sleep(3 * LIMIT_S)
    assert [rank.line for rank in ranks] == [None, None, None]


def test_a_rank_that_falls_silent_is_named_by_all_others(job: Callable[..., list[Rank]]) -> None:
    first, second, third = job(3, 0, 1, 2)
    second.done = "7 of 9 steps done"
    wait_until(lambda: "7 of 9" in first._signs.get(1, ""))
    second._over.set()
    wait_until(lambda: first.line is not None and third.line is not None)
    assert second.line is None
    for number, rank in ((0, first), (2, third)):
        assert rank.line is not None
        assert rank.line.startswith(f"rank {number}: rank 1 is lost (process "), rank.line
        assert "; last seen with 7 of 9 steps done, in " in rank.line
        assert "rank 2 is" not in rank.line


def test_a_rank_that_has_never_given_a_sign_is_named(job: Callable[..., list[Rank]]) -> None:
    first, second = job(3, 0, 1)
    wait_until(lambda: first.line is not None and second.line is not None)
    assert (first.lost or "").startswith("rank 2 is lost, no sign of life for ")
    assert second.lost == first.lost


def test_without_rank_0_the_others_name_it(job: Callable[..., list[Rank]]) -> None:
    second, third = job(3, 1, 2)
    wait_until(lambda: second.line is not None and third.line is not None)
    assert (second.line or "").startswith("rank 1: rank 0 is lost")
    assert (third.line or "").startswith("rank 2: rank 0 is lost")


def test_time_in_which_this_process_was_stopped_does_not_count(
    job: Callable[..., list[Rank]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a whole job is suspended and goes on."""
    (first, _) = ranks = job(2, 0, 1)
    wait_until(lambda: 1 in first._signs)
    now = time.monotonic
    with monkeypatch.context() as later:
        later.setattr(module.time, "monotonic", lambda: now() + 1000.0)
        time.sleep(2 * LIMIT_S)
    assert [rank.line for rank in ranks] == [None, None]


def test_many_lost_ranks_are_counted_after_the_first_few() -> None:
    said = Rank()._said_of(dict.fromkeys(range(8, 16), 280.0))
    assert said == "; ".join(
        [*(f"rank {rank} is lost, no sign of life for 280 s" for rank in range(8, 12)), "4 more ranks too"]
    )
