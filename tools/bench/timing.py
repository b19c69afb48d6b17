"""Contenders timed in turns, ratios taken in each round, and the table of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

Contender = Callable[[int], Any]
"""Called with the number of the round, which says which batch and mask it works on."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds in the same rounds; `ratios` are ours / other, and their median should not be above `goal`."""

    name: str
    ours: Sequence[float]
    other: Sequence[float]
    goal: float | None = None

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.other, strict=True)]

    @property
    def verdict(self) -> str:
        """PASS or SHORT, with the goal; nothing where there is none."""
        if self.goal is None:
            return ""
        return f"{'PASS' if median(self.ratios) <= self.goal else 'SHORT'} (goal {self.goal:.2f})"


@dataclass(frozen=True, slots=True)
class Fact:
    """A number without a contender."""

    name: str
    value: str


def measure(
    contenders: Mapping[str, Contender],
    repetitions: int,
    device: torch.device,
    ready: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of each contender in each round; the one that starts a round changes from round to round. `ready` is
    called before each."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(repetitions):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            _synchronize(device)
            ready()
            begin = time.perf_counter()
            contenders[name](i)
            _synchronize(device)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(comparisons: Sequence[Comparison], facts: Sequence[Fact]) -> str:
    lines = []
    if comparisons:
        width = max(len(comparison.name) for comparison in comparisons)
        lines.append(f"{'':<{width}}  ours ms  other ms   ratio: min  median     max  verdict")
        for c in comparisons:
            times = f"{1e3 * median(c.ours):>7.1f}  {1e3 * median(c.other):>8.1f}"
            ratios = f"{min(c.ratios):>10.3f}  {median(c.ratios):>6.3f}  {max(c.ratios):>6.3f}"
            lines.append(f"{c.name:<{width}}  {times}  {ratios}  {c.verdict}".rstrip())
    if facts:
        width = max(len(fact.name) for fact in facts)
        lines += ["", *(f"{fact.name:<{width}}  {fact.value}" for fact in facts)]
    return "\n".join(lines)
