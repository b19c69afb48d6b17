"""All that a run knows between two steps, but for the experts: one value, the same on every rank."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Annotated, ClassVar

from annotated_types import Interval
from pydantic import ConfigDict, NonNegativeInt

from dist_moe.artefacts import EXACT

Weight = Annotated[float, Interval(ge=0, lt=inf)]


@dataclass(frozen=True, slots=True)
class Position:
    """Where a schedule stands: how many batches of an epoch's `order` are done."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    epoch: NonNegativeInt
    place: NonNegativeInt
    order: tuple[NonNegativeInt, ...]


@dataclass(frozen=True, slots=True)
class RevisionInForce:
    """Which of the run's mask revisions a step has trained under, and the digest of its store."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    number: NonNegativeInt
    digest: str


@dataclass(frozen=True, slots=True)
class Done:
    """What was counted of one step, or of all steps so far."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    tokens: NonNegativeInt = 0
    """Real tokens, prompt and answer."""
    loss_tokens: NonNegativeInt = 0
    rows: NonNegativeInt = 0

    def __add__(self, other: Done) -> Done:
        return Done(self.tokens + other.tokens, self.loss_tokens + other.loss_tokens, self.rows + other.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainState:
    """What a checkpoint keeps beside the experts and the learning rate. A step makes a new one of it."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    step: NonNegativeInt
    """Steps that are done."""
    position: Position
    batch_weights: tuple[Weight, ...]
    """[B] what each batch's loss is multiplied by."""
    masks: RevisionInForce
    seed: NonNegativeInt
    """Of all that a step may draw. Today nothing in a step does, so there is no generator to keep."""
    done: Done
    """Of all steps together."""

    @classmethod
    def first(cls, position: Position, num_batches: int, masks: RevisionInForce, seed: int) -> TrainState:
        """Before the first step; every batch weighs 1."""
        return cls(step=0, position=position, batch_weights=(1.0,) * num_batches, masks=masks, seed=seed, done=Done())

    def after(self, step: int, position: Position, masks: RevisionInForce, done: Done) -> TrainState:
        """The state when one more step is done."""
        return replace(self, step=step, position=position, masks=masks, done=self.done + done)
