"""What takes a step on a rank, by name, and how much memory it takes at most."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dist_moe.parallel.comm import GroupComm
from dist_moe.parallel.mesh import Mesh
from tools.bench.floor import FloorStep
from tools.bench.memory import peak_bytes
from tools.bench.ours import OurStep
from tools.bench.processes import on_ranks
from tools.bench.setup import Mode, Options, Setup

OURS, FLOOR = "ours", "floor, no communication"
NATIVE, AUTO = "transformers, ep_size = ranks", "DeepSpeed AutoEP, ZeRO-1"


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
        return getattr(_peers(), name)(setup, mode)

    return make


def _peers() -> Any:
    return importlib.import_module("tools.bench.rank_peers")  # imports deepspeed


CONTENDERS: dict[str, Callable[[Setup, Mode], Any]] = {
    OURS: lambda setup, mode: OurStep(setup, mode, "deepspeed"),
    "ours, engine fsdp": lambda setup, mode: OurStep(setup, mode, "fsdp"),
    "ours, ep_size 1": lambda setup, mode: OurStep(setup, mode, "deepspeed"),
    FLOOR: FloorStep,
    "peer, compact union, DDP": _peer("ReplicatedStep"),
    NATIVE: _peer("NativeStep"),
    AUTO: _peer("AutoEPStep"),
}
"""Experts are split over all ranks, or each rank has a copy of all."""


def absent() -> dict[str, str]:
    """The contenders that the installed libraries do not have, and why."""
    return {NATIVE: why} if (why := _peers().why_no_native()) else {}


def peaks(num_ranks: int, name: str, options: Options, mode: Mode) -> list[int]:
    """Bytes at each rank's highest point."""
    return on_ranks(num_ranks, options.threads, _peak, name, options, mode)


def _peak(comm: GroupComm, name: str, options: Options, mode: Mode) -> int:
    once = replace(options, repetitions=1)
    return peak_bytes(lambda: Contender(name, once, mode, comm).step, options.batches, comm.device)
