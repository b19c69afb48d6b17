"""The training loop: which batch comes when, and what is written down of each step."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dist_moe.config.schema import Config
from dist_moe.data.batches import epoch_order, micro_batches, shard_rows
from dist_moe.data.tokens import Encoded, TokenBatch, collate
from dist_moe.parallel.comm import Comm
from dist_moe.store.read import MaskStore
from dist_moe.training.step import MaskedStep


@dataclass(frozen=True, slots=True)
class Split:
    """How a batch's rows become micro-batches on `num_ranks` ranks: the same number on each."""

    batch_size: int
    num_ranks: int
    micro_batch_size: int
    num_micro_batches: int

    @classmethod
    def of(cls, batch_size: int, num_ranks: int, micro_batch_size: int | None) -> Split:
        """At most `micro_batch_size` rows at once; None: all of a rank's rows."""
        rows_per_rank = -(-batch_size // num_ranks)
        size = min(micro_batch_size or rows_per_rank, rows_per_rank)
        return cls(batch_size, num_ranks, size, -(-rows_per_rank // size))

    def local(self, rows: list[Encoded], rank: int, pad_id: int) -> list[TokenBatch]:
        """One rank's micro-batches of a batch. A rank with fewer rows gets micro-batches without a real token."""
        mine = [rows[i] for i in shard_rows(len(rows), rank, self.num_ranks)]
        parts = [list(part) for part in micro_batches(mine, self.micro_batch_size)]
        parts += [[]] * (self.num_micro_batches - len(parts))
        return [collate(part, pad_id) for part in parts]


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One step of the plan, known before it runs. `step` counts from 1."""

    step: int
    epoch: int
    batch: int


def schedule_steps(num_batches: int, epochs: int, seed: int) -> Iterator[Scheduled]:
    """Every batch once an epoch, in an order drawn anew for each epoch."""
    for epoch in range(epochs):
        for i, batch in enumerate(epoch_order(num_batches, seed, epoch)):
            yield Scheduled(epoch * num_batches + i + 1, epoch, int(batch))


def train_loop(
    config: Config,
    step: MaskedStep,
    store: MaskStore,
    rows: Callable[[int], list[Encoded]],
    split: Split,
    *,
    pad_id: int,
    comm: Comm,
    metrics: Path,
    say: Callable[[str], None],
) -> None:
    """Run all steps; rank 0 writes one JSON line a step to `metrics` and says a shorter one."""
    num_batches = len(store.batches)
    num_steps = num_batches * config.train.epochs
    width = len(str(num_steps))
    with open(metrics if comm.rank == 0 else os.devnull, "w", encoding="utf-8") as stream:
        for plan in schedule_steps(num_batches, config.train.epochs, config.seed):
            info = store.batches[plan.batch]
            started = time.perf_counter()
            mask_LE = torch.from_numpy(store.masks[plan.batch])
            lr = step.optimizer.param_groups[0]["lr"]
            result = step(mask_LE, info.mask_hash, split.local(rows(plan.batch), comm.rank, pad_id))
            seconds = time.perf_counter() - started
            line = {
                **asdict(plan),
                "batch_id": info.id,
                "category": info.category,
                "mode": config.train.mode,
                **asdict(result),
                "lr": lr,
                "seconds": round(seconds, 4),
                "tokens_per_second": round(result.num_tokens / seconds, 1),
            }
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            say(
                f"step {plan.step:>{width}}/{num_steps}  batch {plan.batch} ({info.category})  "
                f"experts {result.num_active}  loss {result.loss:.4f}  norm {result.grad_norm:.4f}  "
                f"tokens/s {result.num_tokens / seconds:,.0f}"
            )
