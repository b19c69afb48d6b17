"""Says which batch each step trains, as a function of the run's state; the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dist_moe.data.batches import epoch_order
from dist_moe.errors import UserError
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

    def added(self, state: TrainState) -> int:
        """How many steps adjustments have added to the order of batches up to `state`."""

    def begin(self) -> Position:
        """Position at the start of a run."""

    def next(self, state: TrainState) -> Scheduled | None:
        """The step that follows `state`; None at the end of the run."""


@dataclass(frozen=True, slots=True)
class EpochSchedule:
    """Every batch so many times per epoch, in an order that follows from `seed` and the number of the epoch; to the end
    of the last epoch, or to the first step with which `max_tokens` tokens are trained."""

    num_batches: int
    epochs: int
    seed: int
    repeats: tuple[int, ...] = ()
    """[B]: how often each batch is trained in an epoch; empty: once."""
    max_tokens: int | None = None
    """None: no limit."""
    tokens: tuple[int, ...] = ()
    """[B]: tokens of each batch, as `Done` counts them; only asked with `max_tokens`."""

    @property
    def num_steps(self) -> int:
        return self._left(self.begin(), 0)

    def total(self, state: TrainState) -> int:
        return state.step + self._left(state.position, state.done.tokens)

    def added(self, state: TrainState) -> int:
        now = state.position
        return state.step + len(now.order) - now.place - (now.epoch + 1) * len(self._turns)

    def require_enough(self) -> None:
        """Raises `UserError`: all epochs together have fewer tokens than `max_tokens`."""
        if self.max_tokens is None:
            return
        most = self.epochs * int(self._tokens(self._turns).sum())
        if most < self.max_tokens:
            raise UserError(
                f"train.max_tokens is {self.max_tokens:,}, but train.epochs {self.epochs} of these rows has {most:,} "
                "tokens: raise train.epochs, or lower train.max_tokens"
            )

    def begin(self) -> Position:
        return self._epoch(0)

    def next(self, state: TrainState) -> Scheduled | None:
        now = state.position
        if self.max_tokens is not None and state.done.tokens >= self.max_tokens:
            return None
        if now.place == len(now.order):
            now = self._epoch(now.epoch + 1)
        if now.epoch == self.epochs:
            return None
        return Scheduled(state.step + 1, now.epoch, now.order[now.place], Position(now.epoch, now.place + 1, now.order))

    def _epoch(self, epoch: int) -> Position:
        turns = self._turns
        return Position(epoch, 0, tuple(turns[epoch_order(len(turns), self.seed, epoch)].tolist()))

    def _left(self, now: Position, done: int) -> int:
        """How many steps follow `now`, before which so many tokens were trained."""
        later = self.epochs - 1 - now.epoch
        if self.max_tokens is None:
            return len(now.order) - now.place + later * len(self._turns)
        coming = np.array(now.order[now.place :], np.int64)
        steps, left = _until(self._tokens(coming), self.max_tokens - done)
        each = int(self._tokens(self._turns).sum())
        whole = min(later, max(left - 1, 0) // each)  # epochs with which the limit is not reached
        steps, left = steps + whole * len(self._turns), left - whole * each
        if whole < later and left > 0:
            order = np.array(self._epoch(now.epoch + 1 + whole).order, np.int64)
            steps += _until(self._tokens(order), left)[0]
        return steps

    def _tokens(self, batches: np.ndarray) -> np.ndarray:
        """int64: tokens of each of these batches."""
        return np.array(self.tokens, np.int64)[batches]

    @property
    def _turns(self) -> np.ndarray:
        """int64: the batches of an epoch in the order of their numbers, each as often as it is trained."""
        return np.repeat(np.arange(self.num_batches), self.repeats or 1)


def _until(tokens: np.ndarray, limit: int) -> tuple[int, int]:
    """How many steps of so many tokens each it takes to reach a limit, at most all; and how much is left of it."""
    if limit <= 0:
        return 0, 0
    sums = np.cumsum(tokens)
    steps = min(int(np.searchsorted(sums, limit)) + 1, len(sums))
    return steps, max(limit - int(sums[-1]), 0) if len(sums) else limit
