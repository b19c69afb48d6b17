"""One training step: ours against a hand-written floor, a compact-union peer and the usual way.

Before the clock starts, the first steps of all must agree on the loss; the floor and the usual way on the gradient norm
too; and the floor on how its weights have moved.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Protocol

import torch

from tools.bench.floor import FloorStep
from tools.bench.ours import OurStep
from tools.bench.peer import PeerStep
from tools.bench.setup import Mode, Options, Setup
from tools.bench.timing import Comparison, Fact
from tools.bench.usual import UsualStep


class Step(Protocol):
    def __call__(self, i: int) -> tuple[float, float]:
        """Loss and gradient norm of round i."""

    def num_bytes(self) -> tuple[int, int]:
        """Gradients and optimizer state."""


CONTENDERS = {
    "ours": OurStep,
    "floor": FloorStep,
    "peer, compact union": PeerStep,
    "whole tensors, gradients x mask": UsualStep,
}
GOALS: dict[Mode, dict[str, float]] = {
    "update": {"floor": 1.0, "peer, compact union": 0.92},
    "route": {"floor": 1.0, "peer, compact union": 0.62},
}


def bench_step(setup: Setup, mode: Mode) -> tuple[list[Comparison], list[Fact]]:
    """A training step, and the memory that each way of doing it takes."""
    steps = {name: contender(setup, mode) for name, contender in CONTENDERS.items()}
    _check_first_steps(setup, steps)
    comparisons = setup.compare(f"step, {mode}", steps, GOALS[mode])
    facts = []
    for name, step in steps.items():
        peak = peak_memory(name, mode, setup.options)
        gradients, state = (f"{num / 2**20:.1f}" for num in step.num_bytes())
        value = f"peak {peak / 2**20:.0f}, gradients {gradients}, optimizer state {state}"
        facts.append(Fact(f"MiB, {mode}: {name}", value))
    return comparisons, facts


def _check_first_steps(setup: Setup, steps: dict[str, Step]) -> None:
    ours, floor, peer, usual = steps.values()
    before = ours.trained(0).clone(), floor.trained(0).clone()
    loss, norm = ours(0)
    for other in (floor, peer, usual):
        other_loss, other_norm = other(0)
        setup.check(loss, other_loss)
        if other is not peer:  # which trains more than the batch's experts
            setup.check(norm, other_norm)
    moved, expected = (step.trained(0) - start for step, start in zip((ours, floor), before, strict=True))
    # AdamW's first step is a sign: where a gradient is all rounding, so is the sign
    setup.check(moved, expected, scale=100)


def peak_memory(name: str, mode: Mode, options: Options) -> int:
    """Bytes at the highest point of the steps on all batches, in a fresh process: see `_peak_memory`."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_memory, name, mode, options).result()


def _peak_memory(name: str, mode: Mode, options: Options) -> int:
    """On CUDA what torch had allocated; on a CPU the process's resident memory over that of the libraries alone."""
    libraries = status("VmRSS")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    setup = Setup(options)
    step = CONTENDERS[name](setup, mode)
    if setup.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:  # building a model has a peak of its own: forget it
        Path("/proc/self/clear_refs").write_text("5")
    for i in range(options.batches):
        step(i)
    return torch.cuda.max_memory_allocated() if setup.device.type == "cuda" else status("VmHWM") - libraries


def status(key: str) -> int:
    """Bytes, from Linux. Not getrusage: a child inherits its parent's ru_maxrss."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))
