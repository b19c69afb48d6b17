"""Chooses how many ranks share the experts of one replica, for `parallel.ep_size: auto`.

A replica on each rank exchanges no token, so it is the fastest, if there is room for it. What a rank needs is what
`dist-moe plan` says of it.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter

import torch

from dist_moe.config.schema import Config
from dist_moe.errors import UserError
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.planning.fit import GB, smallest_ep_size, usable
from dist_moe.training.checkpoint_index import checkpoint_directories, read_index
from dist_moe.weights.model_dir import check_model_dir
from dist_moe.workflows.plan import outline_of_model, setup_of, trained_by_masks
from dist_moe.workflows.run_dir import RunDir

log = logging.getLogger(__name__)


def resolved_ep_size(config: Config, work: RunDir, comm: Comm) -> int | None:
    """The setting, or what it is if it is `auto`; None: all ranks. Called by all ranks together.

    A run that goes on keeps what it began with, also on GPUs of another size.

    Raises:
        UserError: on all ranks: the model or its masks cannot be read.
    """
    asked = config.parallel.ep_size
    if asked != "auto" or comm.size == 1:
        return None if asked == "auto" else asked
    devices = comm.gather(_device(comm))
    of_host = Counter(name for name, _ in devices)
    room = usable(min(size // of_host[name] for name, size in devices))
    chosen = None
    with together(comm):
        if comm.rank == 0:
            kept = _of_run(config, work, comm.size)
            chosen = (kept, "as the run began") if kept else _chosen(config, comm.size, room)
    found = comm.gather(chosen)[0]
    assert found is not None
    log.info(f"parallel.ep_size auto: {found[0]}, {found[1]}")
    return found[0]


def _chosen(config: Config, num_ranks: int, room: int) -> tuple[int, str]:
    check_model_dir(config.model.path)
    outline = outline_of_model(config)
    trained, _ = trained_by_masks(config, outline)
    tokens = config.data.max_length
    setup = setup_of(config, outline, num_ranks, 1, row_tokens=tokens, answer_tokens=tokens)
    ep_size, needs = smallest_ep_size(outline, setup, trained, room)
    there = f"{needs[ep_size] / GB:.1f} GB on each rank, of {room / GB:.1f}"
    if needs[ep_size] > room:
        return ep_size, f"which needs least, but by the plan {there}"
    fewer = [f"{size} needs {need / GB:.1f} GB" for size, need in needs.items() if size < ep_size]
    return ep_size, f"which needs {there}" + "".join(f"; {each}" for each in fewer)


def _of_run(config: Config, work: RunDir, num_ranks: int) -> int | None:
    """That of the newest checkpoint which can be read, if as many ranks wrote it."""
    if config.checkpoint.resume != "auto":
        return None
    for path in reversed(checkpoint_directories(work.checkpoints)):
        try:
            layout = read_index(path).layout
        except UserError:  # reported where the run resumes
            continue
        return layout.ep_size if layout.num_ranks == num_ranks else None
    return None


def _device(comm: Comm) -> tuple[str, int]:
    """A name that ranks have in common which share a memory, and its bytes."""
    if comm.device.type == "cuda":
        return f"{socket.gethostname()} {comm.device}", torch.cuda.mem_get_info(comm.device)[1]
    return socket.gethostname(), os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
