"""Which batch each step trains: a function of the run's state, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from dist_moe.data.batches import epoch_order
from dist_moe.training.state import Position, TrainState


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One step of the plan, known before it runs. `step` counts from 1, `epoch` and `batch` from 0."""

    step: int
    epoch: int
    batch: int
    position: Position
    """Where the schedule stands when the step is done."""


class Schedule(Protocol):
    """What comes next may depend on all that the state holds, and on nothing else: a ledger's replay asks it again."""

    @property
    def num_steps(self) -> int:
        """Steps of the whole run: the learning rate's curve is over these."""

    def begin(self) -> Position:
        """Where a run starts."""

    def next(self, state: TrainState) -> Scheduled | None:
        """The step after those that `state` has done; None: the run is at its end."""


@dataclass(frozen=True, slots=True)
class EpochSchedule:
    """Every batch once an epoch, in an order that is drawn anew for each epoch from `seed` and the epoch's number."""

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
