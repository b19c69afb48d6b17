"""One training step on several ranks: ours against what one would train experts with there otherwise.

The floor is a copy on each rank that trains on this rank's rows alone and tells nobody: what a step costs without
communication. Before the clock starts, the losses of all first steps must agree.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dist_moe.parallel.comm import GroupComm
from dist_moe.parallel.mesh import Mesh
from tools.bench.floor import FloorStep
from tools.bench.ours import OurStep
from tools.bench.processes import on_ranks
from tools.bench.setup import Mode, Options, Setup
from tools.bench.step import status
from tools.bench.timing import Comparison, Fact, measure
from tools.bench.traffic import Traffic

NATIVE, AUTO, FLOOR = "transformers, ep_size = ranks", "DeepSpeed AutoEP, ZeRO-1", "floor, no communication"
PEERS: dict[Mode, float] = {"update": 0.68, "route": 0.52}
GOALS: dict[Mode, dict[str, float]] = {
    "update": {FLOOR: 1.10, NATIVE: PEERS["update"], AUTO: PEERS["update"]},
    "route": {FLOOR: 1.15, NATIVE: PEERS["route"], AUTO: PEERS["route"]},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One rank's."""

    seconds: dict[str, list[float]]
    sent: dict[str, tuple[int, float]]
    """By contender, collectives and bytes of one step."""
    held: dict[str, tuple[int, int]]
    """Bytes of gradients and of optimizer state."""
    num_rows: dict[str, int]
    """Of ours, rows that this rank's experts computed on in that step."""


class Contender:
    """A step on one rank."""

    def __init__(self, name: str, options: Options, mode: Mode, comm: GroupComm) -> None:
        ep_size = 1 if name == "ours, ep_size 1" else None
        self.setup = Setup(options, Mesh.of(comm, ep_size))
        self.step: Any = CONTENDERS[name](self.setup, mode)

    def share(self, i: int) -> float:
        """Takes a step; this rank's share of the loss."""
        found, setup = self.step(i), self.setup
        if isinstance(self.step, OurStep):
            return float(found[0]) / setup.comm.size
        if isinstance(self.step, FloorStep):
            return float(found[0]) * len(setup.batch(i).predicting) / setup.num_answers(i)
        return float(found if isinstance(found, float) else found[0])


def _peer(name: str) -> Callable[[Setup, Mode], Any]:
    def make(setup: Setup, mode: Mode) -> Any:
        return getattr(importlib.import_module("tools.bench.rank_peers"), name)(setup, mode)  # imports deepspeed

    return make


CONTENDERS: dict[str, Callable[[Setup, Mode], Any]] = {
    "ours": lambda setup, mode: OurStep(setup, mode, "deepspeed"),
    "ours, engine fsdp": lambda setup, mode: OurStep(setup, mode, "fsdp"),
    "ours, ep_size 1": lambda setup, mode: OurStep(setup, mode, "deepspeed"),
    FLOOR: FloorStep,
    "peer, compact union, DDP": _peer("ReplicatedStep"),
    NATIVE: _peer("NativeStep"),
    AUTO: _peer("AutoEPStep"),
}
"""Experts are split over all ranks, or each rank has a copy of all."""


def bench_ranks(options: Options, mode: Mode) -> tuple[list[Comparison], list[Fact]]:
    """Of the slowest rank in each round; bytes and memory of the rank with most."""
    ranks = on_ranks(options.ranks, options.threads, _compete, options, mode)
    seconds = {
        name: [max(round_) for round_ in zip(*(rank.seconds[name] for rank in ranks), strict=True)]
        for name in CONTENDERS
    }
    row = f"step on {options.ranks} ranks, {mode}"
    ours, *others = CONTENDERS
    comparisons = [
        Comparison(f"{row} / {name}", seconds[ours], seconds[name], GOALS[mode].get(name)) for name in others
    ]
    return comparisons, [Fact(f"{row}: {name}", _facts(name, ranks, options, mode)) for name in CONTENDERS]


def _facts(name: str, ranks: list[Report], options: Options, mode: Mode) -> str:
    collectives, sent = max(rank.sent[name] for rank in ranks)
    gradients, state = (max(rank.held[name][i] for rank in ranks) for i in (0, 1))
    peak = max(on_ranks(options.ranks, options.threads, _peak_memory, name, options, mode))
    mib = {"sent": sent, "gradients": gradients, "state": state, "peak": peak}
    text = f"{collectives} collectives, MiB " + ", ".join(f"{key} {value / 2**20:.1f}" for key, value in mib.items())
    rows = [rank.num_rows[name] for rank in ranks if name in rank.num_rows]
    balance = f", rows of experts max/mean {max(rows) * len(rows) / max(sum(rows), 1):.2f}" if rows else ""
    return text + balance


def _compete(comm: GroupComm, options: Options, mode: Mode) -> Report:
    contenders = {name: Contender(name, options, mode, comm) for name in CONTENDERS}
    losses: dict[str, float] = {}
    sent: dict[str, tuple[int, float]] = {}
    num_rows: dict[str, int] = {}
    for name, contender in contenders.items():
        losses[name] = sum(comm.gather(contender.share(0)))
        with Traffic(comm.rank, comm.size) as traffic:
            contender.step(1)
        sent[name] = traffic.num_collectives, traffic.num_bytes
        if isinstance(contender.step, OurStep):
            num_rows[name] = int(sum(layer.received_S.sum() for layer in contender.step.step.model.layers))
    setup = contenders["ours"].setup
    for loss in losses.values():
        setup.check(losses["ours"], loss)
    steps = {name: contender.step for name, contender in contenders.items()}
    seconds = measure(steps, options.repetitions, comm.device, ready=comm.barrier)
    held = {name: step.num_bytes() for name, step in steps.items()}
    return Report(seconds=seconds, sent=sent, held=held, num_rows=num_rows)


def _peak_memory(comm: GroupComm, name: str, options: Options, mode: Mode) -> int:
    """As `step.peak_memory`, of this rank."""
    libraries = status("VmRSS")
    contender = Contender(name, replace(options, repetitions=1), mode, comm)
    if comm.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    for i in range(options.batches):
        contender.step(i)
    return torch.cuda.max_memory_allocated() if comm.device.type == "cuda" else status("VmHWM") - libraries
