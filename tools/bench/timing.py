"""Contenders timed in pairs, and ratios taken in each pair."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tools.bench.spread import Spread

Contender = Callable[[int], Any]
"""Called with the number of the round, which says which batch and mask it works on."""


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of each round: of the clock, and of all the process's threads on CPUs."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @classmethod
    def of_ranks(cls, ranks: Sequence[Times]) -> Times:
        """The slowest rank's time in each round, and the CPU time of all of them."""
        walls, cpus = (zip(*each, strict=True) for each in ((r.wall for r in ranks), (r.cpu for r in ranks)))
        return cls([max(round_) for round_ in walls], [sum(round_) for round_ in cpus])

    @classmethod
    def joined(cls, parts: Sequence[Times]) -> Times:
        """One after the other."""
        return cls(
            [second for each in parts for second in each.wall], [second for each in parts for second in each.cpu]
        )


@dataclass(frozen=True, slots=True)
class Comparison:
    """Times in the same rounds; ratios are ours / other, and their median by the clock should not be above `goal`."""

    row: str
    other_name: str
    ours: Times
    other: Times
    goal: float | None = None
    is_on_ranks: bool = False
    num_launches: int = 1
    """Fresh processes; the rounds of one stand after those of another, and each has as many."""

    @classmethod
    def of_launches(cls, launches: Sequence[Comparison]) -> Comparison:
        """One row's, of each launch."""
        ours, other = (Times.joined([getattr(each, side) for each in launches]) for side in ("ours", "other"))
        return replace(launches[0], ours=ours, other=other, num_launches=len(launches))

    @property
    def name(self) -> str:
        return f"{self.row} / {self.other_name}"

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours.wall, self.other.wall, strict=True)]

    @property
    def cpu_ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours.cpu, self.other.cpu, strict=True)]

    @property
    def spread(self) -> Spread:
        return Spread.of(self.ratios, self.num_launches)

    @property
    def cpu_spread(self) -> Spread:
        return Spread.of(self.cpu_ratios, self.num_launches)

    @property
    def is_short(self) -> bool:
        return self.goal is not None and self.spread.median > self.goal

    @property
    def word(self) -> str:
        """PASS or SHORT; nothing where there is no goal."""
        return "" if self.goal is None else "SHORT" if self.is_short else "PASS"

    @property
    def verdict(self) -> str:
        """With the goal."""
        return "" if self.goal is None else f"{self.word} (goal {self.goal:.2f})"


@dataclass(frozen=True, slots=True)
class Count:
    """A number that should not be above `goal`; `shown` is how it is printed."""

    name: str
    value: float
    goal: float
    reason: str
    """Numbers that say why it is SHORT, if it is."""
    shown: str = ""

    @property
    def is_short(self) -> bool:
        return self.value > self.goal

    @property
    def word(self) -> str:
        return "SHORT" if self.is_short else "PASS"

    @property
    def verdict(self) -> str:
        return f"{self.word} (goal {self.goal:g})"

    @property
    def text(self) -> str:
        return self.shown or f"{self.value:.3f}"


@dataclass(frozen=True, slots=True)
class Fact:
    """A number without a goal."""

    name: str
    value: str


Result = Comparison | Count | Fact


def measure(
    ours: Contender,
    others: Mapping[str, Contender],
    rounds: range,
    device: torch.device,
    ready: Callable[[], object] = lambda: None,
) -> dict[str, tuple[Times, Times]]:
    """Times of ours and of each other. In each round every other one has ours at its side, so that both are timed on
    the same state of the machine; which of the two is first, and which pair, changes from round to round. `ready` is
    called before each."""
    names = list(others)
    times = {name: (Times(), Times()) for name in names}
    for i in rounds:
        start = i % len(names)
        for name in names[start:] + names[:start]:
            pair = list(zip((ours, others[name]), times[name], strict=True))
            for contender, found in pair if i % 2 == 0 else reversed(pair):
                _synchronize(device)
                ready()
                begin, begin_cpu = time.perf_counter(), time.process_time()
                contender(i)
                _synchronize(device)
                found.wall.append(time.perf_counter() - begin)
                found.cpu.append(time.process_time() - begin_cpu)
    return times


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
