"""How far two judges agree: raw agreement and Cohen's kappa."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan

import numpy as np


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of two judges on the same n answers. Both numbers are NaN where they are not defined."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    """counts[i][j]: answers that the first judge puts in class i and the second in class j."""
    num_left_out: int
    """Answers that one of them, or both, did not judge: they are in no number here."""

    @property
    def num_judged(self) -> int:
        return int(np.sum(self.counts))

    @property
    def raw(self) -> float:
        """Share of the answers on which both say the same."""
        return float(np.trace(self.counts) / self.num_judged) if self.num_judged else nan

    @property
    def kappa(self) -> float:
        """(raw - chance) / (1 - chance), where chance is the agreement of two judges with these shares of classes that
        look at nothing. Cohen, A coefficient of agreement for nominal scales, 1960. NaN where chance is 1: both judges
        say the same one thing of every answer."""
        if not self.num_judged:
            return nan
        counts = np.array(self.counts) / self.num_judged
        chance = float(counts.sum(0) @ counts.sum(1))
        return (self.raw - chance) / (1 - chance) if chance < 1 else nan


def agreement(first: Sequence[str], second: Sequence[str], classes: Sequence[str]) -> Agreement:
    """Compare two lists of verdicts of the same answers; a verdict outside `classes` leaves its answer out.

    Raises:
        ValueError: the lists are not equally long.
    """
    place = {name: i for i, name in enumerate(classes)}
    counts = np.zeros((len(place), len(place)), np.int64)
    num_left_out = 0
    for one, other in zip(first, second, strict=True):
        if one in place and other in place:
            counts[place[one], place[other]] += 1
        else:
            num_left_out += 1
    return Agreement(tuple(classes), tuple(tuple(map(int, row)) for row in counts), num_left_out)
