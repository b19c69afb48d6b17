"""From a launcher's environment (torchrun, deepspeed, srun) to a `Comm`, and back to a clean end."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from dist_moe.errors import LostRankError, UserError
from dist_moe.parallel.comm import Comm, GroupComm, SoloComm

TIMEOUT = datetime.timedelta(minutes=30)
LOST_CONNECTION = re.compile(r"Connection closed by peer|Connection reset by peer|Broken pipe")
"""In what gloo raises, wherever in torch, when the process at the other end is gone."""


def launched() -> bool:
    """Whether a launcher started this process: RANK and WORLD_SIZE are the launchers' common protocol."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def local_device() -> torch.device:
    """This process's GPU by LOCAL_RANK, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    torch.cuda.set_device(device)
    return device


def _share_cores() -> None:
    """Split this node's cores between its ranks, where nobody has said how: more threads than cores cost a factor."""
    num_local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE")  # torchrun's and deepspeed's name
    if num_local and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // int(num_local)))


@contextmanager
def process_group() -> Iterator[Comm]:
    """The launcher's processes as one `Comm`, or one process without a launcher.

    A clean end waits for all ranks; an error does not, so that the launcher can end the others.

    Raises:
        LostRankError: another process has died, as the next exchange with it shows. With nccl it does not: there the
            launcher ends the others, or `TIMEOUT` does.
    """
    device = local_device()
    if not launched():
        yield SoloComm(device)
        return
    _share_cores()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    assert dist.group.WORLD is not None
    comm = GroupComm(dist.group.WORLD, device)
    try:
        yield comm
        comm.barrier()
    except RuntimeError as error:
        if not LOST_CONNECTION.search(str(error)):
            raise
        raise LostRankError(
            f"rank {comm.rank}: another rank has ended before its work was done, by a signal or an error of its own; "
            "the same command goes on from the last checkpoint"
        ) from None
    dist.destroy_process_group()


@contextmanager
def together(comm: Comm) -> Iterator[None]:
    """A phase that may fail on some ranks only: a `UserError` on any rank becomes one `UserError` on all.

    Nothing inside may wait for other ranks.
    """
    message = None
    try:
        yield
    except UserError as error:
        message = str(error)
    messages = [m for m in comm.gather(message) if m is not None]
    if messages:
        raise UserError(messages[0])
