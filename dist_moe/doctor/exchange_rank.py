"""One rank of the exchange check: python -m dist_moe.doctor.exchange_rank, with a launcher's variables."""

from __future__ import annotations

import datetime
import json
import os
import time

import torch
import torch.distributed as dist

from dist_moe.parallel.comm import GroupComm

ROWS, WIDTH = 1024, 1024


def main() -> None:
    """Print what was exchanged, on rank 0."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    by_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= size
    device = torch.device("cuda", rank) if by_gpu else torch.device("cpu")
    if by_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if by_gpu else "gloo", timeout=datetime.timedelta(seconds=60))
    assert dist.group.WORLD is not None
    comm = GroupComm(dist.group.WORLD, device)
    rows = torch.full((size * ROWS, WIDTH), float(rank), device=device)
    counts = [ROWS] * size
    comm.swap_rows(rows, counts, counts)  # the first one makes connections
    comm.barrier()
    started = time.perf_counter()
    received = comm.swap_rows(rows, counts, counts)
    total = int(comm.sum_(torch.tensor(rank + 1, device=device)))
    seconds = time.perf_counter() - started
    expected = torch.arange(size, device=device).repeat_interleave(ROWS)
    is_right = bool((received[:, 0] == expected).all()) and total == size * (size + 1) // 2
    if rank == 0:
        told = {"backend": dist.get_backend(), "megabytes": 4e-6 * rows.numel(), "seconds": seconds}
        print(json.dumps({**told, "is_right": is_right}), flush=True)
    comm.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
