"""How CPU time, and what a training step exchanges, grow with batches, experts and ranks.

    OMP_NUM_THREADS=1 python -m tools.growth batches              in minutes
    OMP_NUM_THREADS=1 python -m tools.growth batches --out docs   with the picture of docs/growth.md
    python -m tools.growth batches --sizes 100 1000 --cases "inspect diff" "report page"
    python -m tools.growth experts
    python -m tools.growth ranks --sizes 8 64

Inputs are made up (tools/growth/made.py) and go through the package's own functions. A case is left out at a size at
which it would take more than `--most` seconds, by the exponent so far.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dist_moe.config.schema import TrainConfig
from tools.growth.batches import CASES, Given
from tools.growth.ranks import steps
from tools.growth.table import cpu_seconds, draw, exponent, table

SIZES = {"batches": (100, 1000, 4000, 10000), "experts": (8, 32, 128, 512), "ranks": (8, 16, 32, 64, 128)}


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
    times: dict[str, dict[int, float]] = {"a training step, s": {}, "experts' weights, MB": {}}
    for size in sizes:
        (rank,) = steps(1, 1, num_experts=size, num_rows=64, settings=TrainConfig())
        times["a training step, s"][size] = rank.seconds
        times["experts' weights, MB"][size] = rank.bank_bytes / 1e6
    return times


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
    else:
        found = over_experts(sizes) if args.what == "experts" else over_ranks(sizes)
        unit = "{:,.3f}" if args.what == "experts" else "{:,.0f}"
    print(table(found, sizes, args.what, unit))
    if args.out is not None:
        draw(found, args.what, args.out / f"growth-{args.what}.svg", "CPU seconds" if args.what == "batches" else "")


if __name__ == "__main__":
    main()
