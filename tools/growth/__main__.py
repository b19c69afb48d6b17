"""How CPU time grows: with batches.

    OMP_NUM_THREADS=1 python -m tools.growth                      all tables, in minutes
    OMP_NUM_THREADS=1 python -m tools.growth --out docs           and the pictures of docs/growth.md
    python -m tools.growth --sizes 100 1000 --cases "inspect diff" "report page"

Inputs are made up (tools/growth/made.py) and go through the package's own functions. A case is left out at a size at
which it would take more than `--most` seconds, by the exponent so far.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tools.growth.batches import CASES, OF_PAIRS, PAIRS_LIMIT, Given
from tools.growth.table import cpu_seconds, draw, exponent, table

SIZES = (100, 1000, 4000, 10000)


def over_batches(names: list[str], sizes: list[int], most_s: float) -> dict[str, dict[int, float]]:
    """CPU seconds of each case at each size."""
    times: dict[str, dict[int, float]] = {name: {} for name in names}
    for size in sizes:
        given = Given(size)
        for name in names:
            if (name in OF_PAIRS and size > PAIRS_LIMIT) or _expected(times[name], size) > most_s:
                continue
            times[name][size] = cpu_seconds(CASES[name](given))
            print(f"{size:>7,} batches: {times[name][size]:7.2f} s  {name}", flush=True)
        given.close()
    return times


def _expected(times: dict[int, float], size: int) -> float:
    """By the exponent so far; 0: nothing is known."""
    if not times:
        return 0.0
    last = max(times)
    return times[last] * (size / last) ** (exponent(times) or 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of batches")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=[*CASES], metavar="CASE", help="those to measure")
    parser.add_argument("--most", type=float, default=30.0, help="seconds that one measurement may take")
    parser.add_argument("--out", type=Path, help="directory for the pictures")
    args = parser.parse_args()
    times = over_batches(args.cases, sorted(args.sizes), args.most)
    print(table(times, sorted(args.sizes), "CPU seconds, batches"))
    if args.out is not None:
        draw(times, "batches", args.out / "growth-batches.svg")


if __name__ == "__main__":
    main()
