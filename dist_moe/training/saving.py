"""Writes the checkpoints of a run, either at once or in a background thread, one at a time."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LRScheduler

from dist_moe.files import hash_first_lines
from dist_moe.parallel.comm import Comm
from dist_moe.training.checkpoint import Parts, UnfinishedCheckpoint
from dist_moe.training.checkpoint_index import Layout
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.state import TrainState


@dataclass(kw_only=True)
class CheckpointSaver:
    """`save` and `finish` are called by all ranks together. The files are the same with and without a thread."""

    root: Path
    optimizer: SelectiveAdamW
    schedule: LRScheduler
    comm: Comm
    facts: dict[str, Any]
    layout: Layout
    keep: int
    asynchronous: bool
    metrics: Path | None = None
    """metrics.jsonl, written by rank 0; a checkpoint contains the digest of its lines."""
    _in_flight: tuple[UnfinishedCheckpoint, Future[Parts]] | None = field(default=None, init=False)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"), init=False)

    def save(self, state: TrainState) -> None:
        """Save a checkpoint of `state`. When this returns, it is on disk, or (asynchronous) being written."""
        self.finish()
        metrics = None
        if self.metrics is not None and self.comm.rank == 0:
            metrics = hash_first_lines(self.metrics, state.step)
        begun = UnfinishedCheckpoint(
            self.root,
            state,
            self.optimizer,
            self.schedule,
            self.comm,
            self.facts,
            self.layout,
            metrics,
            copy=self.asynchronous,
        )
        self._in_flight = begun, self._thread.submit(begun.write)
        if not self.asynchronous:
            self.finish()

    @property
    def written(self) -> bool:
        """Whether this rank has finished its part of the checkpoint that is being written, successfully or not."""
        return self._in_flight is not None and self._in_flight[1].done()

    def finish(self) -> None:
        """Wait for a checkpoint that is being written, and give it its name.

        Raises:
            UserError: on all ranks: one of them has failed to write.
        """
        if self._in_flight is not None:
            (begun, parts), self._in_flight = self._in_flight, None
            begun.publish(parts.result, keep=self.keep)
