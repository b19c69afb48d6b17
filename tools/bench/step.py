"""One training step: ours against a hand-written floor, a compact-union peer and the usual way.

Before the clock starts, the first steps of all must agree on the loss; the floor and the usual way on the gradient norm
too; and the floor on how its weights have moved.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Protocol

import torch
from transformers import Qwen3MoeConfig

from tools.bench.floor import FloorStep
from tools.bench.memory import Parts, optimizer_goal, peak_bytes, peak_goal
from tools.bench.ours import OurStep
from tools.bench.peer import PeerStep
from tools.bench.setup import Mode, Options, Setup
from tools.bench.timing import Fact, Result
from tools.bench.usual import UsualStep


class Step(Protocol):
    def __call__(self, i: int) -> tuple[float, float]:
        """Loss and gradient norm of round i."""

    def num_bytes(self) -> tuple[int, int]:
        """Gradients and optimizer state."""


USUAL = "whole tensors, gradients x mask"
CONTENDERS = {
    "ours": OurStep,
    "floor": FloorStep,
    "peer, compact union": PeerStep,
    USUAL: UsualStep,
}
GOALS: dict[Mode, dict[str, float]] = {
    "update": {"floor": 1.0, "peer, compact union": 0.92},
    "route": {"floor": 1.0, "peer, compact union": 0.62},
}


def bench_step(setup: Setup, mode: Mode) -> list[Result]:
    """A training step; in the first launch the memory that each way of doing it takes, too."""
    steps = {name: contender(setup, mode) for name, contender in CONTENDERS.items()}
    _check_first_steps(setup, steps)
    results: list[Result] = [*setup.compare(f"step, {mode}", steps, GOALS[mode])]
    if setup.launch > 0:
        return results
    peaks = {name: peak_memory(name, mode, setup.options) for name in steps}
    for name, step in steps.items():
        gradients, state = (f"{num / 2**20:.1f}" for num in step.num_bytes())
        value = f"peak {peaks[name] / 2**20:.0f}, gradients {gradients}, optimizer state {state}"
        results.append(Fact(f"MiB, {mode}: {name}", value))
    (ours, floor), (our_peak, floor_peak) = ([*each.values()][:2] for each in (steps, peaks))
    parts = Parts.of(ours), Parts.of(floor)
    return [
        *results,
        peak_goal(f"step, {mode}", our_peak, parts[0], floor_peak, parts[1]),
        optimizer_goal(f"step, {mode}", [parts[0]], setup.num_union, setup.options.dtype == "float32"),
    ]


def bench_larger(options: Options, mode: Mode, launch: int) -> list[Result]:
    """A training step with larger experts, without the usual way, whose whole tensors would need much memory."""
    setup = Setup(options.larger, launch=launch)
    steps = {name: contender(setup, mode) for name, contender in CONTENDERS.items() if name != USUAL}
    _check_first_steps(setup, steps)
    o, row = setup.options, f"step of larger experts, {mode}"
    results: list[Result] = [*setup.compare(row, steps, GOALS[mode])]
    if launch > 0:
        return results
    sizes = f"{o.layers} layers, H {o.hidden}, I {o.intermediate}"
    shares = (f"{expert_share(each):.0%}" for each in (setup.config, Setup(options).config))
    text = "{} of a token's products in a layer are of experts, {} in the other rows".format(*shares)
    return [*results, Fact(f"{row}: {sizes}", text)]


def expert_share(config: Qwen3MoeConfig) -> float:
    """Of the products of weights that a token takes part in, in a layer: those of experts."""
    experts = 3 * config.num_experts_per_tok * config.hidden_size * config.moe_intermediate_size
    heads = 2 * (config.num_attention_heads + config.num_key_value_heads)
    attention = heads * config.head_dim * config.hidden_size
    return experts / (experts + attention + config.num_experts * config.hidden_size)


def _check_first_steps(setup: Setup, steps: dict[str, Step]) -> None:
    ours, floor, *others = steps.values()
    before = ours.trained(0).clone(), floor.trained(0).clone()
    loss, norm = ours(0)
    for other in (floor, *others):
        other_loss, other_norm = other(0)
        setup.check(loss, other_loss)
        if not isinstance(other, PeerStep):  # which trains more than the batch's experts
            setup.check(norm, other_norm)
    moved, expected = (step.trained(0) - start for step, start in zip((ours, floor), before, strict=True))
    # AdamW's first step is a sign: where a gradient is all rounding, so is the sign
    setup.check(moved, expected, scale=100)


def peak_memory(name: str, mode: Mode, options: Options) -> int:
    """Bytes at the highest point of the steps on all batches, in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_memory, name, mode, options).result()


def _peak_memory(name: str, mode: Mode, options: Options) -> int:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return peak_bytes(lambda: CONTENDERS[name](Setup(options), mode), options.batches, device)
