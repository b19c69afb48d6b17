"""Says which batch each step trains, as a function of the run's state; the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

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
        """Number of steps that are planned from the start; adjustments may add some."""

    def total(self, state: TrainState) -> int:
        """Number of steps of the whole run, with those that adjustments have added up to `state`."""

    def begin(self) -> Position:
        """Position at the start of a run."""

    def next(self, state: TrainState) -> Scheduled | None:
        """The step that follows `state`; None at the end of the run."""


@dataclass(frozen=True, slots=True)
class EpochSchedule:
    """Every batch so many times per epoch, in an order that follows from `seed` and the number of the epoch."""

    num_batches: int
    epochs: int
    seed: int
    repeats: tuple[int, ...] = ()
    """[B]: how often each batch is trained in an epoch; empty: once."""

    @property
    def num_steps(self) -> int:
        return len(self._turns) * self.epochs

    def total(self, state: TrainState) -> int:
        now = state.position
        return state.step + len(now.order) - now.place + (self.epochs - 1 - now.epoch) * len(self._turns)

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
        turns = self._turns
        return Position(epoch, 0, tuple(turns[epoch_order(len(turns), self.seed, epoch)].tolist()))

    @property
    def _turns(self) -> np.ndarray:
        """int64: the batches of an epoch in the order of their numbers, each as often as it is trained."""
        return np.repeat(np.arange(self.num_batches), self.repeats or 1)
