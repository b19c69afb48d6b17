"""What each step of a run trains: experts, dense weights, or both; a function of the number of the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dist_moe.errors import UserError, shown
from dist_moe.ranges import Trains

EXAMPLE = "such as experts:20"


@dataclass(frozen=True, slots=True)
class Trained:
    """What one step trains: the experts of its batch's mask, and the dense weights that the run trains."""

    experts: bool = True
    dense: bool = False


EXPERTS = Trained()


@dataclass(frozen=True, slots=True)
class Rounds:
    """`trains` says what the run trains, and `rounds` when: each (what, steps) in turn, over and over."""

    trains: Trains = "experts"
    rounds: tuple[tuple[Trains, int], ...] = ()

    @classmethod
    def of(cls, trains: Trains, rounds: Sequence[str]) -> Rounds:
        """From the settings.

        Raises:
            UserError: a round is wrong, or does not fit to what is trained.
        """
        read = tuple(_round(text) for text in rounds)
        if read and trains != "experts_and_routers":
            raise UserError(f"train.rounds takes turns of experts and routers, but train.trains is {trains}: set it to "
                            "experts_and_routers")  # fmt: skip
        if read and {what for what, _ in read} != {"experts", "routers"}:
            raise UserError("train.rounds: expected at least one round of experts and one of routers")
        return cls(trains, read)

    def name_at(self, step: int) -> Trains:
        """What step 1, 2, ... trains."""
        place = (step - 1) % max(sum(steps for _, steps in self.rounds), 1)
        for what, steps in self.rounds:
            if place < steps:
                return what
            place -= steps
        return self.trains

    def at(self, step: int) -> Trained:
        """What step 1, 2, ... trains."""
        return _trained(self.name_at(step))

    @property
    def ever(self) -> Trained:
        """What at least one step may train."""
        return _trained(self.trains)

    @property
    def routers_only(self) -> bool:
        """Whether the dense weights that the run trains are its routers, and no others."""
        return self.trains in ("routers", "experts_and_routers")

    def union(self, union_LE: np.ndarray) -> np.ndarray:
        """Which experts of a union of masks the run trains: all of them, or none."""
        return union_LE if self.ever.experts else np.zeros_like(union_LE)


def _trained(trains: Trains) -> Trained:
    return Trained(experts=trains != "routers", dense=trains != "experts")


def _round(text: str) -> tuple[Trains, int]:
    what, _, steps = text.partition(":")
    if what not in ("experts", "routers") or not (steps.isascii() and steps.isdigit() and int(steps) > 0):
        raise UserError(f"train.rounds: expected experts:STEPS or routers:STEPS, {EXAMPLE}, got {shown(text)}")
    return ("experts" if what == "experts" else "routers"), int(steps)
