"""The benchmark's row of ranks: what is sent is counted right, and all contenders train on the same rows."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

from dist_moe.parallel.comm import GroupComm
from tests.ranks.harness import run_ranks
from tools.bench.rank_contenders import CONTENDERS, absent
from tools.bench.setup import SMALL, Setup
from tools.bench.traffic import Traffic


def send(comm: GroupComm) -> list[tuple[str, int, float]]:
    """What is counted of each kind of exchange, on rank 0 of two."""
    mine, found = torch.zeros(6, 4), []
    uneven = [1, 2] if comm.rank == 0 else [5, 2]
    exchanges = {
        "all_to_all": lambda: comm.swap_rows(torch.zeros(sum(uneven), 4), uneven, [1, 5] if comm.rank == 0 else [2, 2]),
        "all_reduce": lambda: comm.sum_(mine),
        "all_gather": lambda: dist.all_gather_into_tensor(torch.zeros(12, 4), mine),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(torch.zeros(3, 4), mine),
        "in backward": lambda: _Sum.apply(mine.requires_grad_(), comm).sum().backward(),
    }
    for name, exchange in exchanges.items():
        with Traffic(comm.rank, comm.size) as traffic:
            exchange()
        found.append((name, traffic.num_collectives, traffic.num_bytes))
    return found


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, comm):
        ctx.comm = comm
        return x.clone()

    @staticmethod
    def backward(ctx, dout):
        return ctx.comm.sum_(dout.clone()), None


def test_what_a_rank_sends_is_counted() -> None:
    row = 4 * 4  # bytes
    assert run_ranks(2, send)[0] == [
        ("all_to_all", 1, 2 * row),
        ("all_reduce", 1, 6 * row),
        ("all_gather", 1, 6 * row),
        ("reduce_scatter", 1, 3 * row),
        ("in backward", 1, 6 * row),
    ]


@pytest.mark.timeout(600)
@pytest.mark.long
def test_small_run_on_ranks_prints_every_contender() -> None:
    """Their losses agree, or it would end. Each rank keeps state of half the experts, of the union or of all. A peer
    that the installed transformers does not have is named."""
    arguments = [sys.executable, "-m", "tools.bench", "--small", "--rows", "ranks", "--threads", "1"]
    done = subprocess.run([*arguments, "--repetitions", "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = (line.split("  ", 1) for line in done.stdout.splitlines() if line.startswith("step on 2 ranks"))
    lines = {name: rest[0] for name, *rest in rows if rest}  # without the reasons at the end
    expert, every = 3 * SMALL.hidden * SMALL.intermediate, SMALL.layers * SMALL.experts
    union = int(Setup(SMALL).masks_BLE.any(0).sum())
    values = [8 * -(-union // 2)] * 3 + [8 * union] * 2 + [8 * every / 2, 12 * every / 2]
    for mode in ("update", "route"):
        row = f"step on 2 ranks, {mode}"
        for name, expected in zip(CONTENDERS, values, strict=True):
            if name in absent():
                assert lines[f"{row}: {name}"].strip() == f"not measured: {absent()[name]}"
                continue
            assert name == "ours" or f"{row} / {name}" in lines
            assert _number(lines[f"{row}: {name}"], "state") == pytest.approx(expected * expert / 2**20, abs=0.06)
        assert _number(lines[f"{row}: floor, no communication"], "sent") == 0
        assert "(goal 1.1" in lines[f"{row} / floor, no communication"]
        for goal in ("bytes sent / bytes of allowed pairs", "rows of experts, max / mean of ranks"):
            assert "(goal 1" in lines[f"{row}: {goal}"]
        assert "  PASS (goal 8)" in lines[f"{row}: bytes of optimizer state a parameter of the union"]
        assert "  PASS (goal 1.05)" in lines[f"{row}: parameters with optimizer state, max / mean"]
        assert "(goal 1.05)" in next(lines[name] for name in lines if name.startswith(f"{row}: peak memory / "))


def _number(line: str, name: str) -> float:
    return float(line.split(f"{name} ")[1].split(",")[0])
