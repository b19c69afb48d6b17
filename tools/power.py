"""Print the tables of docs/statistics.md, of made-up batches: how often the tests are wrong, and what they find; how
often intervals hold the truth.

python tools/power.py       some minutes on one core
"""

from __future__ import annotations

from dist_moe.risk.permutation import Statistic
from dist_moe.risk.simulate import Scenario, intervals, performance

STATISTICS: tuple[Statistic, ...] = ("standardized", "difference")
TESTS = (
    *("spread", "effect", "prompts", "risk_diff > 0.05", "family error", "fdr error", "family power", "fdr power"),
    *("error by difference", "power by difference"),
)
INTERVALS = ("spread", "pairs' spread", "prompts", "drawn as", "coverage", "length")


def print_tests() -> None:
    print_head(TESTS)
    for spread in (0.5, 1.0):
        for effect, size in ((0.0, 8), (1.0, 8), (2.0, 8), (4.0, 8), (1.0, 32), (2.0, 32)):
            found, plain = (
                performance(
                    Scenario(spread=spread, effect=effect, num_safe=size, num_unsafe=size),
                    num_batches=40 if effect else 200,
                    num_permutations=1000,
                    alpha=0.05,
                    statistic=statistic,
                    seed=0,
                )
                for statistic in STATISTICS
            )
            errors = f"{found.above_threshold:.0f} | {found.family_error:.3f} | {found.fdr_error:.3f}"
            powers = f"{found.family_power:.2f} | {found.fdr_power:.2f}" if effect else "- | -"
            other = f"{plain.family_error:.3f} | " + (f"{plain.family_power:.2f}" if effect else "-")
            print(f"| {spread} | {effect:.0f} | {size} + {size} | {errors} | {powers} | {other} |", flush=True)


def print_intervals() -> None:
    print_head(INTERVALS)
    for spread, pair_spread in ((1.0, 0.0), (0.5, 2.0)):
        for size in (8, 32):
            for with_pairs in (True, False) if pair_spread else (False,):
                found = intervals(
                    Scenario(spread=spread, pair_spread=pair_spread, num_safe=size, num_unsafe=size),
                    num_batches=40,
                    num_resamples=200,
                    with_pairs=with_pairs,
                    seed=0,
                )
                drawn = "pairs" if with_pairs else "prompts"
                shape = f"{spread} | {pair_spread:.0f} | {size} + {size} | {drawn}"
                print(f"| {shape} | {found.coverage:.3f} | {found.length:.3f} |", flush=True)


def print_head(columns: tuple[str, ...]) -> None:
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")


if __name__ == "__main__":
    print_tests()
    print()
    print_intervals()
