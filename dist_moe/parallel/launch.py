"""Makes a `Comm` from a launcher's environment (torchrun, deepspeed, srun), and ends all processes cleanly."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from dist_moe.errors import LostRankError, UserError
from dist_moe.parallel.comm import Comm, GroupComm, SoloComm
from dist_moe.parallel.heartbeat import Heartbeat
from dist_moe.parallel.rendezvous import TIMEOUT, Launch, meet, number

LOST_CONNECTION = re.compile(r"Connection closed by peer|Connection reset by peer|Broken pipe")
"""Matches the error messages of gloo, anywhere in torch, when the process at the other end is gone."""


def local_device() -> torch.device:
    """This process's GPU, by LOCAL_RANK; the CPU if there is no GPU.

    Raises:
        UserError: there is no such GPU, or LOCAL_RANK is not a number.
    """
    index = number(os.environ, "LOCAL_RANK") if "LOCAL_RANK" in os.environ else 0
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if index >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK is {index}, but {torch.cuda.device_count()} GPU(s) are visible here: start at most one "
            "process a GPU on each node"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def _share_cores() -> None:
    """Divide the node's cores among its ranks unless the user has set a number: more threads than cores are much
    slower."""
    named = [name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if os.environ.get(name)]  # torchrun's, deepspeed's
    if named and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // number(os.environ, named[0], least=1)))


@contextmanager
def process_group() -> Iterator[Comm]:
    """Context manager: the launcher's processes as one `Comm`, or a single process without a launcher.

    At a normal end it waits for all ranks. After an error it does not, so that the launcher can end the others. When
    another process gives no sign of life for `comm.heartbeat.limit_s`, this one ends with status 1.

    Raises:
        UserError: the launcher's variables are inconsistent, or its processes cannot meet.
        LostRankError: another process has died, which the next communication shows. Not with nccl: there the launcher
            ends the others, or the heartbeat does.
    """
    device = local_device()
    launch = Launch.of(os.environ)
    if launch is None:
        yield SoloComm(device)
        return
    _share_cores()
    store = meet(launch)
    backend = "nccl" if device.type == "cuda" else "gloo"
    heartbeat = Heartbeat()
    with heartbeat.beating(store, launch.rank, launch.num_ranks):
        dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.num_ranks, timeout=TIMEOUT)
        assert dist.group.WORLD is not None
        comm = GroupComm(dist.group.WORLD, device, heartbeat)
        if comm.rank > 0:
            logging.getLogger("dist_moe").setLevel(logging.WARNING)  # what all ranks would say is told by the first
        try:
            yield comm
            comm.barrier()
        except RuntimeError as error:
            if not LOST_CONNECTION.search(str(error)):
                raise
            ended = "another rank has ended before its work was done, by a signal or an error of its own"
            raise LostRankError(
                f"rank {comm.rank}: {heartbeat.lost or ended}; run the same command again to resume from the last "
                "checkpoint"
            ) from None
    dist.destroy_process_group()


@contextmanager
def together(comm: Comm) -> Iterator[dict[str, object]]:
    """Context manager for code that may fail on some ranks only: a `UserError` on any rank is raised on all.

    The block gets a mapping (name -> a value with a short repr); what it puts there must be the same on all ranks. A
    difference is reported first, because it may be why a rank failed. The block must not wait for other ranks.

    Raises:
        UserError: on all ranks.
    """
    message, facts = None, dict[str, object]()
    try:
        yield facts
    except UserError as error:
        message = str(error)
    answers = comm.gather((message, {name: repr(value) for name, value in facts.items()}))
    _require_same([facts for _, facts in answers])
    for rank, (message, _) in enumerate(answers):
        if message is not None:
            raise UserError(message if rank == 0 else f"rank {rank}: {message}")


def _require_same(ranks: list[dict[str, str]]) -> None:
    """Compare what each rank has put into its mapping with rank 0; report the first difference."""
    for name, expected in ranks[0].items():
        for rank, facts in enumerate(ranks):
            if facts.get(name, expected) != expected:
                raise UserError(
                    f"ranks differ: {name} is {_cut(expected)} on rank 0, {_cut(facts[name])} on rank {rank}; give all "
                    "ranks the same command, configuration, files and versions"
                )


def _cut(text: str, width: int = 100) -> str:
    return text if len(text) <= width else f"{text[: width - 3]}..."
