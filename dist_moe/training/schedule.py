"""Says which batch each step trains, as a function of the run's state; the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dist_moe.data.batches import epoch_order
from dist_moe.training.state import Position, TrainState


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One step of the schedule. `step` counts from 1, `epoch` and `batch` from 0."""

    step: int
    epoch: int
    batch: int
    position: Position
    """Position of the schedule after the step."""


class Schedule(Protocol):
    """The interface of schedules. The next step may depend on the whole state and on nothing else, because the check
    of metrics.jsonl replays it."""

    @property
    def num_steps(self) -> int:
        """Number of steps of the whole run, which the learning-rate schedule needs."""

    def begin(self) -> Position:
        """Position at the start of a run."""

    def next(self, state: TrainState) -> Scheduled | None:
        """The step that follows `state`; None at the end of the run."""


@dataclass(frozen=True, slots=True)
class EpochSchedule:
    """Every batch once per epoch, in an order that follows from `seed` and the number of the epoch."""

    num_batches: int
    epochs: int
    seed: int

    @property
    def num_steps(self) -> int:
        return self.num_batches * self.epochs

    def begin(self) -> Position:
        return self._epoch(0)

    def next(self, state: TrainState) -> Scheduled | None:
        now = state.position
        if now.place == len(now.order):
            now = self._epoch(now.epoch + 1)
        if now.epoch == self.epochs:
            return None
        return Scheduled(state.step + 1, now.epoch, now.order[now.place], Position(now.epoch, now.place + 1, now.order))

    def _epoch(self, epoch: int) -> Position:
        return Position(epoch, 0, tuple(epoch_order(self.num_batches, self.seed, epoch).tolist()))
