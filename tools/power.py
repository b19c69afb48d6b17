"""Print the table of docs/statistics.md: how often the tests are wrong, and what they find, on made-up batches.

python tools/power.py       some minutes on one core
"""

from __future__ import annotations

from dist_moe.risk.simulate import Population, performance

COLUMNS = ("spread", "effect", "prompts", "risk_diff > 0.05", "family error", "fdr error", "family power", "fdr power")


def main() -> None:
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for spread in (0.5, 1.0):
        for effect, size in ((0.0, 8), (1.0, 8), (2.0, 8), (4.0, 8), (1.0, 32), (2.0, 32)):
            found = performance(
                Population(spread=spread, effect=effect, num_safe=size, num_unsafe=size),
                num_batches=40 if effect else 200,
                num_permutations=1000,
                alpha=0.05,
                seed=0,
            )
            errors = f"{found.above_threshold:.0f} | {found.family_error:.3f} | {found.fdr_error:.3f}"
            powers = f"{found.family_power:.2f} | {found.fdr_power:.2f}" if effect else "- | -"
            print(f"| {spread} | {effect:.0f} | {size} + {size} | {errors} | {powers} |", flush=True)


if __name__ == "__main__":
    main()
