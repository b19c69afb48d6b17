"""Lets a launcher's processes find each other, after checking the launcher's variables, without hanging.

If WORLD_SIZE or RANK is wrong, torch waits half an hour or for ever for a rank that will not come. Here every process
registers at the job's store, and rank 0 tells all of them at once what does not fit.
"""

from __future__ import annotations

import datetime
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from dist_moe.errors import LostRankError, UserError, refused_by_library, shown
from dist_moe.parallel.interface import is_loopback, listen_at

log = logging.getLogger(__name__)

TIMEOUT = datetime.timedelta(minutes=30)
ANSWER = datetime.timedelta(seconds=10)
"""Time limit for the store's answer when something listens at the port; normally it takes milliseconds."""
STRAY_S = 10.0
"""How long a process that has no place in the job tries to find the others; it keeps them waiting."""
PATIENCE_S = 30.0
"""After this time a process says for whom it is waiting."""
LAUNCHERS = "launchers (torchrun, deepspeed, accelerate) set it"


@dataclass(frozen=True, slots=True)
class Launch:
    """The position that a launcher has given to this process, from the environment variables that all launchers set."""

    rank: int
    num_ranks: int
    address: str
    port: int

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Launch | None:
        """The position of this process; None if no launcher has started it.

        Raises:
            UserError: the variables are incomplete or wrong.
        """
        if not launched(environment):
            return None
        num_ranks = number(environment, "WORLD_SIZE", least=1)
        rank = number(environment, "RANK")
        for name, given in (
            ("MASTER_ADDR", environment.get("MASTER_ADDR")),
            ("MASTER_PORT", "MASTER_PORT" in environment),
        ):
            if not given:
                raise UserError(f"RANK is set, but {name} is not: {LAUNCHERS}")
        return cls(rank, num_ranks, environment["MASTER_ADDR"], number(environment, "MASTER_PORT", 1, 65535))

    @property
    def place(self) -> str:
        """Address at which the ranks meet."""
        return f"MASTER_ADDR {self.address}, MASTER_PORT {self.port}"


def launched(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started this process: whether RANK and WORLD_SIZE are set.

    Raises:
        UserError: only one of them is set.
    """
    given = [name for name in ("RANK", "WORLD_SIZE") if name in environment]
    if len(given) == 1:
        other = "WORLD_SIZE" if given == ["RANK"] else "RANK"
        raise UserError(
            f"{given[0]} is set, but {other} is not: launchers (torchrun, deepspeed, accelerate) set both; for one "
            f"process unset {given[0]}"
        )
    return len(given) == 2


def number(environment: Mapping[str, str], name: str, least: int = 0, most: int | None = None) -> int:
    """A whole number from the environment.

    Raises:
        UserError: it is not a whole number, or out of range.
    """
    text = environment[name]
    limits = f"from {least}" if most is None else f"from {least} to {most}"
    if not (text.isascii() and text.isdecimal()) or int(text) < least or (most is not None and int(text) > most):
        raise UserError(f"{name} is {shown(text)}: expected a whole number {limits}; {LAUNCHERS}")
    return int(text)


def meet(launch: Launch) -> dist.Store:
    """The job's store, after all ranks have registered. Called by every process of the job.

    Raises:
        UserError: in every process: the processes were not started as one job, or cannot meet at all.
        LostRankError: rank 0 has ended in the meantime.
    """
    whole = _connect(launch)
    store = dist.PrefixStore("dist_moe", whole)
    own, others = _addresses(launch)
    if not is_loopback(others):
        store.set("reached", others)
    num_come = store.add("come", 1)
    store.set(f"come/{num_come}", f"{launch.rank} {launch.num_ranks}")
    if launch.rank == 0 and not store.check(["verdict"]):
        store.set("verdict", _judge(store, launch.num_ranks))
    try:
        store.wait(["verdict"], TIMEOUT)
    except RuntimeError:
        raise LostRankError(
            f"rank {launch.rank}: rank 0 has ended before all ranks had come to {launch.place}"
        ) from None
    verdict = store.get("verdict").decode()
    if not verdict and num_come > launch.num_ranks:
        verdict = f"{launch.place}: {num_come} processes have come, but WORLD_SIZE is {launch.num_ranks}"
    store.add("told", 1)
    if verdict:
        limit = time.monotonic() + STRAY_S
        while launch.rank == 0 and store.add("told", 0) < store.add("come", 0) and time.monotonic() < limit:
            time.sleep(0.01)  # the store ends with rank 0
        raise UserError(f"{verdict}: give each process of the job its own RANK, and all the same WORLD_SIZE")
    if not is_loopback(own):
        listen_at(own)
    elif store.check(["reached"]):
        listen_at(store.get("reached").decode())
    return dist.PrefixStore("group", whole)


def _judge(store: dist.Store, num_ranks: int) -> str:
    """On rank 0: what does not fit; "" when all ranks have registered, each once."""
    seen: set[int] = set()
    wait = _Wait(TIMEOUT.total_seconds())
    while len(seen) < num_ranks:
        key = f"come/{len(seen) + 1}"
        while not store.check([key]):
            missing = shown([rank for rank in range(num_ranks) if rank not in seen])
            if wait.is_over(f"rank 0 waits for these of {num_ranks} ranks: {missing}"):
                return f"of {num_ranks} ranks these have not come in {TIMEOUT}: {missing}"
            time.sleep(0.01)
        rank, its_num_ranks = map(int, store.get(key).split())
        if its_num_ranks != num_ranks:
            return f"WORLD_SIZE is {num_ranks} on rank 0, {its_num_ranks} on rank {rank}"
        if rank >= num_ranks:
            return _beyond(rank, num_ranks)
        if rank in seen:
            return f"two processes have RANK {rank}"
        seen.add(rank)
    return ""


class _Wait:
    """A time limit; a message, once, if waiting takes long."""

    def __init__(self, seconds: float) -> None:
        self._begun, self._seconds, self._said = time.monotonic(), seconds, False

    def is_over(self, what: str) -> bool:
        waited = time.monotonic() - self._begun
        if not self._said and waited > PATIENCE_S:
            self._said = True
            limit = datetime.timedelta(seconds=round(self._seconds))
            log.warning(f"{what}; it gives up after {limit}")
        return waited > self._seconds


def _beyond(rank: int, num_ranks: int) -> str:
    return f"RANK is {rank}, but WORLD_SIZE is {num_ranks}, so that the last rank is {num_ranks - 1}"


def _connect(launch: Launch) -> dist.Store:
    """The store at the job's address, held by rank 0 or by torchrun."""
    is_beyond = launch.rank >= launch.num_ranks
    if launch.rank > 0 and not _listens(launch, STRAY_S if is_beyond else TIMEOUT.total_seconds()):
        if is_beyond:
            raise UserError(f"{_beyond(launch.rank, launch.num_ranks)}: start as many processes as WORLD_SIZE says")
        raise UserError(f"{launch.place}: rank {launch.rank} has waited there for rank 0 for {TIMEOUT}")
    if launch.rank == 0 and not dist.is_torchelastic_launched():
        _require_free(launch)
    found: list[dist.Store] = []

    def open_store() -> None:
        # a world of 1: without it rank 0 would wait here for a number of processes, whichever they are
        store, *_ = next(rendezvous(f"env://?rank={launch.rank}&world_size=1", timeout=ANSWER))
        found.append(store)

    advice = "see that it is rank 0's host, and a port that nothing else uses (--master_port)"
    what = f"{launch.place}: rank {launch.rank} cannot meet the others there"
    with refused_by_library(what, advice, (RuntimeError, OSError)):
        _within(ANSWER, open_store)
    found[0].set_timeout(TIMEOUT)
    return found[0]


def _within(limit: datetime.timedelta, function: Callable[[], None]) -> None:
    """Call a function with a time limit: torch may wait for ever if something else listens at the port."""
    raised: list[Exception] = []

    def call() -> None:
        try:
            function()
        except (RuntimeError, OSError) as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(2 * limit.total_seconds())
    if thread.is_alive():
        raise TimeoutError(f"no answer in {2 * limit}")
    if raised:
        raise raised[0]


def _listens(launch: Launch, seconds: float) -> bool:
    """Wait until something listens at rank 0's port."""
    wait = _Wait(seconds)
    while True:
        try:
            socket.create_connection((launch.address, launch.port), timeout=ANSWER.total_seconds()).close()
            return True
        except OSError:
            if wait.is_over(f"rank {launch.rank} waits for rank 0 at {launch.place}"):
                return False
            time.sleep(0.1)


def _addresses(launch: Launch) -> tuple[str, str]:
    """This host's address and that of rank 0's host, as this process sees them on its way to the store."""
    with socket.create_connection((launch.address, launch.port), timeout=ANSWER.total_seconds()) as connection:
        return connection.getsockname()[0], connection.getpeername()[0]


def _require_free(launch: Launch) -> None:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", launch.port))
        except OSError as error:
            raise UserError(
                f"MASTER_PORT {launch.port} is not available on {socket.gethostname()} ({error.strerror}): choose "
                "another (--master_port), or end the job that uses it"
            ) from None
