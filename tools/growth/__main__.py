"""How CPU time, and what a training step holds and exchanges, grow with batches, experts, trained share and ranks.

    OMP_NUM_THREADS=1 python -m tools.growth batches              in minutes
    OMP_NUM_THREADS=1 python -m tools.growth batches --out docs   with the picture of docs/growth.md
    python -m tools.growth batches --sizes 100 1000 --cases "inspect diff" "report page"
    python -m tools.growth experts
    python -m tools.growth share
    python -m tools.growth ranks --sizes 8 64

Inputs are made up (tools/growth/made.py) and go through the package's own functions. A case is left out at a size at
which it would take more than `--most` seconds, by the exponent so far.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dist_moe.config.schema import TrainConfig
from tools.growth.batches import CASES, Given
from tools.growth.ranks import steps
from tools.growth.table import cpu_seconds, draw, exponent, table

SIZES = {
    "batches": (10, 100, 1000, 10000),
    "experts": (8, 32, 128, 512),
    "share": (1, 5, 10, 25, 50, 100),
    "ranks": (1, 2, 4, 8, 16, 32, 64, 128),
}
AXES = {"share": "% of the experts that are trained"}
UNITS = {"batches": "CPU seconds"}
NUM_STEPS = 8
"""Of which the quickest counts."""


def over_batches(names: list[str], sizes: list[int], most_s: float) -> dict[str, dict[int, float]]:
    """CPU seconds of each case at each size."""
    times: dict[str, dict[int, float]] = {name: {} for name in names}
    for size in sizes:
        given = Given(size)
        for name in names:
            if _expected(times[name], size) > most_s:
                continue
            times[name][size] = cpu_seconds(CASES[name](given))
            print(f"{size:>7,} batches: {times[name][size]:7.2f} s  {name}", flush=True)
        given.close()
    return times


def _expected(times: dict[int, float], size: int) -> float:
    """By the exponent so far; 0: too little is known."""
    if len(times) < 2:
        return 0.0
    last = max(times)
    return times[last] * (size / last) ** (exponent(times) or 1.0)


def over_experts(sizes: list[int]) -> dict[str, dict[int, float]]:
    """A training step on one rank, by the number of experts of a layer; a quarter of them are trained."""
    return _of_a_step({size: {"num_experts": size} for size in sizes})


def over_shares(sizes: list[int]) -> dict[str, dict[int, float]]:
    """A training step on one rank, by the share of a layer's 128 experts that is trained, in percent."""
    return _of_a_step({size: {"num_experts": 128, "share": size / 100} for size in sizes})


def _of_a_step(cases: dict[int, dict[str, Any]]) -> dict[str, dict[int, float]]:
    names = ("a training step, ms", "experts' weights, kB", "gradients, kB", "optimizer state, kB")
    found: dict[str, dict[int, float]] = {name: {} for name in names}
    for size, words in cases.items():
        (rank,) = steps(1, 1, num_rows=64, settings=TrainConfig(), num_steps=NUM_STEPS, **words)
        values = rank.seconds * 1e6, rank.bank_bytes, rank.gradient_bytes, rank.state_bytes
        for name, value in zip(names, values, strict=True):
            found[name][size] = value / 1e3
    return found


def over_ranks(sizes: list[int]) -> dict[str, dict[int, float]]:
    """A training step of one row a rank, on replicas of up to eight ranks; of the rank with the most."""
    found: dict[str, dict[int, float]] = {
        name: {} for name in ("collectives", "bytes sent", "bytes of experts' weights", "bytes of optimizer state")
    }
    for size in sizes:
        ranks = steps(size, min(size, 8), num_experts=64, num_rows=size, settings=TrainConfig())
        found["collectives"][size] = max(sum(rank.collectives.values()) for rank in ranks)
        found["bytes sent"][size] = max(rank.bytes_sent for rank in ranks)
        found["bytes of experts' weights"][size] = max(rank.bank_bytes for rank in ranks)
        found["bytes of optimizer state"][size] = max(rank.state_bytes for rank in ranks)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=SIZES)
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of batches, experts or ranks")
    parser.add_argument(
        "--cases", nargs="+", choices=CASES, default=[*CASES], metavar="CASE", help="with batches: which"
    )
    parser.add_argument("--most", type=float, default=30.0, help="seconds that one measurement of batches may take")
    parser.add_argument("--out", type=Path, help="directory for the picture")
    args = parser.parse_args()
    sizes = sorted(args.sizes or SIZES[args.what])
    if args.what == "batches":
        found, unit = over_batches(args.cases, sizes, args.most), "{:.2f}"
    elif args.what == "ranks":
        found, unit = over_ranks(sizes), "{:,.0f}"
    else:
        found, unit = (over_experts if args.what == "experts" else over_shares)(sizes), "{:,.1f}"
    axis = AXES.get(args.what, args.what)
    print(table(found, sizes, axis, unit))
    if args.out is not None:
        draw(found, axis, args.out / f"growth-{args.what}.svg", UNITS.get(args.what, ""))


if __name__ == "__main__":
    main()
