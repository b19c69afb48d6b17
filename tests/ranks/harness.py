"""Run a function on N real gloo processes. A hang is a failure: everything is killed at a hard limit."""

import contextlib
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from queue import Empty
from typing import Any

import torch
import torch.distributed as dist

from dist_moe.parallel.comm import GroupComm
from tests.forks import server

LIMIT_SECONDS = 400


def run_ranks(num_ranks: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Call `function(comm, *args)` on every rank; returns the results (anything that can be pickled) in rank order."""
    context = server()
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as directory:
        processes = [
            context.Process(target=_rank, args=(rank, num_ranks, directory, queue, function, args), daemon=True)
            for rank in range(num_ranks)
        ]
        for process in processes:
            process.start()
        try:
            answers = _collect(queue, processes)
        finally:
            for process in processes:
                process.join(timeout=10)
                process.kill()
    failures = [f"rank {rank}:\n{text}" for rank, (ok, text) in sorted(answers.items()) if not ok]
    assert not failures, "\n".join(failures)
    return [answers[rank][1] for rank in range(num_ranks)]


def _collect(queue: Any, processes: list[Any]) -> dict[int, tuple[bool, Any]]:
    answers: dict[int, tuple[bool, Any]] = {}
    end = time.monotonic() + LIMIT_SECONDS
    while len(answers) < len(processes) and all(ok for ok, _ in answers.values()):
        assert time.monotonic() < end, f"hang: only ranks {sorted(answers)} answered in {LIMIT_SECONDS} s"
        with contextlib.suppress(Empty):
            rank, answer = queue.get(timeout=0.2)
            answers[rank] = answer
    return answers


def _rank(rank: int, num_ranks: int, directory: str, queue: Any, function: Callable[..., Any], args: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks))  # as a launcher does
    store = dist.FileStore(str(Path(directory) / "store"), num_ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=num_ranks)
    try:
        answer = (True, function(GroupComm(dist.group.WORLD, torch.device("cpu")), *args))
    except BaseException:  # noqa: BLE001 - the parent reports it with this rank's traceback
        answer = (False, traceback.format_exc())
    queue.put((rank, answer))
    if answer[0]:
        dist.barrier()
        dist.destroy_process_group()
