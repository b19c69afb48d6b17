"""Print the tables of docs/statistics.md, of made-up batches: how often the tests are wrong, and what they find; how
often intervals contain the truth; and both where prompts have several rows.

python -m tools.power       some minutes on one core
"""

from __future__ import annotations

from typing import Any

from dist_moe.stats.permutation import Statistic
from tools.simulate import Scenario, intervals, performance

STATISTICS: tuple[Statistic, ...] = ("standardized", "difference")
TESTS = (
    *("spread", "effect", "prompts", "risk_diff > 0.05", "family error", "fdr error", "family power", "fdr power"),
    *("error by difference", "power by difference"),
)
CLUSTERS = (
    *("prompts and rows", "expert error", "family error", "coverage"),
    *("expert error by rows", "family error by rows", "coverage by rows"),
)
SEVERAL_ROWS: dict[str, dict[str, Any]] = {
    "8 + 8, 1 to 8 rows": {"safe_rows": (1, 8), "unsafe_rows": (1, 8), "row_spread": 0.5},
    "32 + 32, 1 to 8 rows": {
        "num_safe": 32,
        "num_unsafe": 32,
        "safe_rows": (1, 8),
        "unsafe_rows": (1, 8),
        "row_spread": 0.5,
    },
    "8 + 8, 1 to 2 rows": {"safe_rows": (1, 2), "unsafe_rows": (1, 2), "row_spread": 0.5},
    "8 of 1 row + 8 of 8 rows": {"unsafe_rows": (8, 8), "row_spread": 0.5},
    "2 + 2 and 6 in both, 1 to 4 rows": {
        "num_safe": 2,
        "num_unsafe": 2,
        "num_both": 6,
        "safe_rows": (1, 4),
        "unsafe_rows": (1, 4),
        "row_spread": 0.5,
    },
    "8 in both, 7 safe rows and 1 unsafe": {
        "num_safe": 0,
        "num_unsafe": 0,
        "num_both": 8,
        "safe_rows": (7, 7),
        "spread": 0.3,
        "row_spread": 1.0,
    },
    "1 + 1, 8 rows": {"num_safe": 1, "num_unsafe": 1, "safe_rows": (8, 8), "unsafe_rows": (8, 8)},
}
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
            for as_rows in (False, True) if pair_spread else (True,):
                found = intervals(
                    Scenario(spread=spread, pair_spread=pair_spread, num_safe=size, num_unsafe=size),
                    num_batches=40,
                    num_resamples=200,
                    as_rows=as_rows,
                    seed=0,
                )
                drawn = "prompts" if as_rows else "pairs"
                shape = f"{spread} | {pair_spread:.0f} | {size} + {size} | {drawn}"
                print(f"| {shape} | {found.coverage:.3f} | {found.length:.3f} |", flush=True)


def print_clusters() -> None:
    print_head(CLUSTERS)
    for name, changes in SEVERAL_ROWS.items():
        scenario = Scenario(num_layers=4, num_experts=32, **changes)
        columns = []
        for as_rows in (False, True):
            found = performance(
                scenario,
                num_batches=300,
                num_permutations=199,
                alpha=0.05,
                statistic="standardized",
                seed=1,
                as_rows=as_rows,
            )
            held = intervals(scenario, num_batches=100, num_resamples=200, as_rows=as_rows, seed=2)
            columns += [f"{found.expert_error:.3f} | {found.family_error:.3f} | {held.coverage:.3f}"]
        print(f"| {name} | {' | '.join(columns)} |", flush=True)


def print_head(columns: tuple[str, ...]) -> None:
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")


if __name__ == "__main__":
    print_tests()
    print()
    print_intervals()
    print()
    print_clusters()
