"""What goes between the device and its host: batches, checkpoints, optimizer state; and rows that are packed."""

from __future__ import annotations

import os
import time
import warnings
from types import SimpleNamespace
from typing import Any

import torch

from dist_moe.conformance.sizes import VOCAB
from dist_moe.data.tokens import Encoded
from dist_moe.parallel.comm import SoloComm
from dist_moe.training.feed import BatchFeed
from dist_moe.training.on_host import STAGE_BYTES, on_host
from dist_moe.training.split import Rows, Split
from tools.gpu_check.here import Here, guarded, relative, report
from tools.gpu_check.ours import Ours
from tools.gpu_check.tiny import Tiny

CARD_BYTES = 80 * 10**9
"""What the large model with its optimizer state on the host has to fit on."""

HOST_BYTES = 64 * 10**9
"""Of which that state takes 35."""


def run(here: Here) -> None:
    with guarded("host", "packed rows"):
        _same_losses(here, "packed rows", packed=True)
    with guarded("host", "optimizer state on the host"):
        _same_losses(here, "optimizer state on the host", state_device=torch.device("cpu"))
    with guarded("host", "next batch"):
        _next_batch(here)
    with guarded("host", "checkpoint"):
        _checkpoint(here)
    with guarded("host", "80 GB"):
        _on_a_smaller_card(here)


def _same_losses(here: Here, check: str, *, packed: bool = False, **more: Any) -> None:
    """The steps of a tiny model, done so, against its steps with padded rows and its state on the device."""
    right, found = (
        [tiny.step(i, packed=each_packed) for i in range(4)]
        for tiny, each_packed in (
            (Tiny("qwen3_moe", "route", torch.float32, SoloComm(here.device), "local"), False),
            (Tiny("qwen3_moe", "route", torch.float32, SoloComm(here.device), "local", **more), packed),
        )
    )
    error = max(relative(torch.tensor(a), torch.tensor(b)) for a, b in zip(found, right, strict=True))
    report("host", check, error < 1e-4, error=error)


def _next_batch(here: Here) -> None:
    """A batch that was made ready in another thread is the same, and its copy to the device is not waited for."""
    ids = torch.randint(3, VOCAB - 3, (16, 2048), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [Encoded(tuple(row[:1024]), tuple(row[1024:]), unsafe=i % 2 == 1) for i, row in enumerate(ids)]
    masks: Any = SimpleNamespace(digest="m", masks=[torch.zeros(2, 4, dtype=torch.bool).numpy()])
    feed = BatchFeed(Rows(lambda _: rows, Split.of(16, 1, None), 0, 0), here.device)
    feed.begin(masks, 0)
    (batch,) = feed.take(masks, 0).micro_batches
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        if here.cuda:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            there = batch.to(here.device)
        finally:
            if here.cuda:
                torch.cuda.set_sync_debug_mode("default")
    pinned = batch.input_ids.is_pinned() if here.cuda else None
    waits = sum("synchronizing" in str(warning.message) for warning in seen)
    same = torch.equal(there.input_ids.cpu(), torch.tensor(ids))
    report("host", "next batch", same and pinned is not False and waits == 0, pinned=pinned, waits=waits)


def _checkpoint(here: Here) -> None:
    """Copies of state to the host: the same values, and the time beside that of one tensor at a time."""
    num, size = (3, 1000) if here.dry else (60, STAGE_BYTES // 20)
    tensors = [torch.randn(size, device=here.device) for _ in range(num)]
    started = time.perf_counter()
    one_by_one = [tensor.to("cpu", copy=True) for tensor in tensors]
    between = time.perf_counter()
    on_host(tensors, copy=True)  # gets the pinned memory
    again = time.perf_counter()
    found = on_host(tensors, copy=True)
    seconds = time.perf_counter() - again
    same = all(map(torch.equal, found, one_by_one))
    times = {"one_by_one_s": between - started, "first_s": again - between, "seconds": seconds}
    report("host", "checkpoint", same, gb=num * size * 4 / 1e9, **times)


def _on_a_smaller_card(here: Here) -> None:
    """A step of Qwen3-30B-A3B, all layers, one row at once, with its optimizer state on the host."""
    if not here.dry and os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < HOST_BYTES:
        report("host", "80 GB", skipped=f"the host has less than {HOST_BYTES / 1e9:.0f} GB")
        return
    if here.cuda:
        total = torch.cuda.get_device_properties(here.device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CARD_BYTES / total))
    ours = Ours(here, "host", "qwen3", None, 1, state_device=torch.device("cpu"))
    ours.model.checkpoint_activations()
    ours.run("update")
