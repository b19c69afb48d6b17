"""Print the runs of a comparison as Markdown tables, with refusals of safe prompts by category, and by each judge.

    python -m tools.results runs/compare --contrast contrast

reads seed-*/VARIANT/evaluation.json and answers.jsonl, which `dist-moe compare` has written. Only held-out rows count.
Intervals are those of docs/evaluation.md, for other seeds and other prompts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.evaluation.comparison import BASE, levels_and_differences
from dist_moe.evaluation.measures import DIVERGENCE, REFUSED_SAFE, REFUSED_UNSAFE
from dist_moe.evaluation.record import INDEX, disagreements_of, read_evaluation
from dist_moe.evaluation.rows import EvaluatedRow
from dist_moe.stats.crossed import Mean

Runs = Mapping[str, Sequence[Sequence[EvaluatedRow]]]
"""Variant -> for each seed its held-out rows."""


def read_runs(directory: Path) -> tuple[dict[str, list[list[EvaluatedRow]]], list[str]]:
    """The runs of all variants that every seed has, and the names of the judges.

    Raises:
        UserError: there is no evaluated run.
    """
    found: dict[str, list[list[EvaluatedRow]]] = {}
    judges: list[str] = []
    seeds = sorted(directory.glob("seed-*"), key=lambda path: int(path.name.removeprefix("seed-")))
    for seed in seeds:
        for index in sorted(seed.glob(f"*/{INDEX}")):
            evaluation = read_evaluation(index.parent)
            judges = [judge.name for judge in evaluation.facts.judges]
            rows = [row for row in evaluation.rows if row.kind == "held out"]
            found.setdefault(index.parent.name, []).append(rows)
    if not found:
        raise UserError(f"{directory}: no seed-*/VARIANT/{INDEX} there: expected the directory of a comparison")
    return {name: runs for name, runs in found.items() if len(runs) == len(seeds)}, judges


def tables(runs: Runs, judges: Sequence[str], contrast: str, reference: str) -> Iterator[str]:
    """Lines of Markdown.

    Args:
        runs: of all variants, `reference` among them.
        judges: the first one's verdicts come first.
        contrast: the category of safe prompts that are shown apart.
        reference: the variant that the others are compared with.
    """
    parts = {
        "unsafe": lambda row: row.is_unsafe,
        f"safe, {contrast}": lambda row: not row.is_unsafe and row.category == contrast,
        "safe, others": lambda row: not row.is_unsafe and row.category != contrast,
        "safe": lambda row: not row.is_unsafe,
    }
    for judge in judges:
        levels, differences = {}, {}
        for name, is_in in parts.items():
            chosen = {variant: [list(filter(is_in, rows)) for rows in of_seeds] for variant, of_seeds in runs.items()}
            levels[name], differences[name] = levels_and_differences(chosen, judge, reference)
        columns = [(name, REFUSED_UNSAFE if name == "unsafe" else REFUSED_SAFE) for name in parts][:3]
        divergence = [("safe", DIVERGENCE)]
        for title, cells, signed in (("refused", levels, False), (f"less {reference}", differences, True)):
            yield f"\nJudge {judge}, {title}:\n"
            heads = [name for name, _ in columns] + ["KL to the base, safe", "judges agree"]
            yield f"| trained | {' | '.join(heads)} |"
            yield "|---" * (len(heads) + 1) + "|"
            for variant in cells["unsafe"]:
                rates = [shown(cells[name][variant].get(measure), 100, signed) for name, measure in columns]
                rates += [shown(cells[name][variant].get(measure), 1, signed) for name, measure in divergence]
                rates.append("" if signed else agreement_of(runs, judges, variant, reference))
                yield f"| {variant} | {' | '.join(rates)} |"


def shown(mean: Mean | None, factor: int, signed: bool) -> str:
    """A mean and its interval; rates as percentages. A difference that is clear of 0 has a star."""
    if mean is None:
        return "-"
    plus, places = "+" if signed else "", 0 if factor == 100 else 3
    value, low, high = (f"{factor * number:{plus}.{places}f}" for number in (mean.value, mean.low, mean.high))
    return f"{value} ({low} to {high})" + (" *" if signed and mean.is_clear else "")


def agreement_of(runs: Runs, judges: Sequence[str], variant: str, reference: str) -> str:
    """In percent of all answers: how often the first two judges say the same."""
    when = "before" if variant == BASE else "after"
    rows = [row for of_seed in runs[reference if variant == BASE else variant] for row in of_seed]
    found = [each.agreement.raw for each in disagreements_of(rows, judges[:2]) if each.when == when]
    return f"{100 * found[0]:.0f}" if found else "-"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="run_dir of a comparison")
    parser.add_argument("--contrast", default="contrast", help="category of safe rows that are shown apart")
    parser.add_argument("--reference", help="the variant that others are compared with; default: the first by name")
    args = parser.parse_args(argv)
    try:
        runs, judges = read_runs(args.directory)
        reference = args.reference or next(iter(runs))
        if reference not in runs:
            raise UserError(f"--reference {reference}: the runs of all seeds are {', '.join(runs)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in tables(runs, judges, args.contrast, reference):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
