"""TrainState: everything that a run knows between two steps, except its experts; one value, the same on every rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Annotated, ClassVar

from annotated_types import Interval
from pydantic import ConfigDict, NonNegativeInt

from dist_moe.artefacts import EXACT

Weight = Annotated[float, Interval(ge=0, lt=inf)]


@dataclass(frozen=True, slots=True)
class Position:
    """Position of a schedule: how many batches of an epoch's `order` are done."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    epoch: NonNegativeInt
    place: NonNegativeInt
    order: tuple[NonNegativeInt, ...]


@dataclass(frozen=True, slots=True)
class RevisionInForce:
    """Number of a mask revision of the run, and the digest of its store."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    number: NonNegativeInt
    digest: str


@dataclass(frozen=True, slots=True)
class Done:
    """Counters of one step, or of all steps so far."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    tokens: NonNegativeInt = 0
    """Real tokens, of prompts and answers."""
    loss_tokens: NonNegativeInt = 0
    rows: NonNegativeInt = 0

    def __add__(self, other: Done) -> Done:
        return Done(self.tokens + other.tokens, self.loss_tokens + other.loss_tokens, self.rows + other.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """What a checkpoint stores besides the experts and the learning-rate schedule. Each step makes a new one."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    step: NonNegativeInt
    """Number of finished steps."""
    position: Position
    batch_weights: tuple[Weight, ...]
    """[B]: weight by which each batch's loss is multiplied."""
    masks: RevisionInForce
    seed: NonNegativeInt
    """Seed for random draws in steps. Today no step draws any, so no generator is stored."""
    done: Done
    """Counters of all steps together."""

    @classmethod
    def first(cls, position: Position, num_batches: int, masks: RevisionInForce, seed: int) -> TrainState:
        """State before the first step; every batch has weight 1."""
        return cls(step=0, position=position, batch_weights=(1.0,) * num_batches, masks=masks, seed=seed, done=Done())

    def after(self, step: int, position: Position, masks: RevisionInForce, done: Done) -> TrainState:
        """State after one more step."""
        return replace(self, step=step, position=position, masks=masks, done=self.done + done)

    def adjusted(self, batch_weights: Sequence[float], next_batches: Sequence[int]) -> TrainState:
        """State after an adjustment: other weights, and batches that are trained next, before the order goes on."""
        now = self.position
        order = (*now.order[: now.place], *next_batches, *now.order[now.place :])
        return replace(self, batch_weights=tuple(batch_weights), position=replace(now, order=order))
