"""Runs a function on several ranks, each a fresh process: a fork of one that has only imported what they need."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dist_moe.parallel.comm import GroupComm

T = TypeVar("T")
PATIENCE = timedelta(minutes=10)


def on_ranks(num_ranks: int, threads: int | None, function: Callable[..., T], *args: Any) -> list[T]:
    """What `function(comm, *args)` returns on each rank: one GPU a rank if there are as many, else CPUs.

    Ranks share torch's CPU threads, or have `threads` each. Where there are as many cores, each rank has its own, as a
    scheduler that moves two ranks onto one core makes the others wait for both.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.bench.rank_peers"])  # imported once, as it takes long
    threads = threads or max(1, torch.get_num_threads() // num_ranks)
    with tempfile.TemporaryDirectory() as directory, ProcessPoolExecutor(num_ranks, mp_context=context) as pool:
        store = Path(directory) / "store"
        running = [pool.submit(_run, rank, num_ranks, store, threads, function, args) for rank in range(num_ranks)]
        return [each.result() for each in running]


def _run(rank: int, num_ranks: int, store: Path, threads: int, function: Callable[..., T], args: Any) -> T:
    cores = sorted(os.sched_getaffinity(0))
    if num_ranks * threads <= len(cores):  # before torch starts threads, which inherit it
        os.sched_setaffinity(0, cores[rank * threads :][:threads])
    torch.set_num_threads(threads)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks))  # as a launcher does
    on_gpus = torch.cuda.device_count() >= num_ranks
    device = torch.device("cuda", rank) if on_gpus else torch.device("cpu")
    if on_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if on_gpus else "gloo",
        store=dist.FileStore(str(store), num_ranks),
        rank=rank,
        world_size=num_ranks,
        timeout=PATIENCE,
    )
    assert dist.group.WORLD is not None
    result = function(GroupComm(dist.group.WORLD, device), *args)
    dist.barrier()
    dist.destroy_process_group()
    return result
