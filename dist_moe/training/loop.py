"""The training loop: which batch comes when, and what is written down of each step."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch

from dist_moe.config.schema import Config
from dist_moe.data.batches import epoch_order, micro_batches, shard_rows
from dist_moe.data.tokens import Encoded, TokenBatch, collate
from dist_moe.errors import UserError
from dist_moe.files import write_bytes_atomic
from dist_moe.parallel.comm import Comm
from dist_moe.store.read import MaskStore
from dist_moe.training.step import MaskedStep

log = logging.getLogger(__name__)


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
    write: Callable[[str], None],
    start: int,
    after_step: Callable[[int], bool],
) -> int:
    """Run the steps after the first `start`; rank 0 gives `write` one JSON line a step, and says a shorter one.

    `after_step(step)` is called when a step is done and written down, and says whether to stop. Returns how many steps
    are done, those before `start` included.
    """
    num_batches = len(store.batches)
    num_steps = num_batches * config.train.epochs
    width = len(str(num_steps))
    for plan in islice(schedule_steps(num_batches, config.train.epochs, config.seed), start, None):
        info = store.batches[plan.batch]
        started = time.perf_counter()
        mask_LE = torch.from_numpy(store.masks[plan.batch])
        lr = step.optimizer.param_groups[0]["lr"]
        audit = config.train.audit
        is_audited = audit > 0 and (plan.step % audit == 0 or plan.step in (1, num_steps))
        take = step.audited if is_audited else step
        result = take(info.id, mask_LE, split.local(rows(plan.batch), comm.rank, pad_id))
        seconds = time.perf_counter() - started
        line = {
            **asdict(plan),
            "batch_id": info.id,
            "category": info.category,
            "mode": config.train.mode,
            **asdict(result),
            "lr": lr,
            "audited": is_audited,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(result.num_tokens / seconds, 1),
        }
        if comm.rank == 0:
            write(json.dumps(line))
        log.info(
            f"step {plan.step:>{width}}/{num_steps}  batch {plan.batch} ({info.category})  "
            f"experts {result.num_active}  loss {result.loss:.4f}  norm {result.grad_norm:.4f}  "
            f"tokens/s {result.num_tokens / seconds:,.0f}"
        )
        if after_step(plan.step):
            return plan.step
    return num_steps


def keep_lines(metrics: Path, num_steps: int) -> None:
    """Cut a run's metrics to its first steps: those after its checkpoint are done again."""
    lines: list[bytes] = []
    if metrics.is_file():
        with metrics.open("rb") as stream:  # what a crash has left behind these lines need not be text
            lines = list(islice(stream, num_steps))
    if len(lines) < num_steps:
        raise UserError(f"{metrics}: {len(lines)} steps, but the run's checkpoint is of step {num_steps}: restore it")
    write_bytes_atomic(metrics, b"".join(lines))


def check_ledger(metrics: Path, store: MaskStore, epochs: int, seed: int) -> None:
    """Prove from what was written down of each step that no batch was left out or done twice."""
    done = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    planned = [(plan.step, store.batches[plan.batch].id) for plan in schedule_steps(len(store.batches), epochs, seed)]
    if [(line.get("step"), line.get("batch_id")) for line in done] != planned:
        raise UserError(
            f"{metrics} is not the run's schedule, so it proves nothing: see what else writes to it, and train again"
        )
