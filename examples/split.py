"""Splits files of rows into train.jsonl, validation.jsonl and held-out.jsonl, by prompt.

    python examples/split.py data/safe.jsonl data/unsafe.jsonl examples/contrast.jsonl --out split \\
      --rows violence=64:16:40 questions=32:8:20 contrast=32:8:20

draws, of the category `violence`, 64 rows to train on, 16 to choose settings with, and 40 for the final evaluation.
Rows of other categories are left out. A row whose prompt is equal or nearly equal to one that an earlier part has is in
none. The same files, seed and numbers give the same parts, whatever the order of the rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from dist_moe import UserError
from dist_moe.data.batches import UNCATEGORISED
from dist_moe.data.rows import Prompt, read_prompts
from dist_moe.evaluation.leakage import asked_text, find_leakage

PARTS = ("train", "validation", "held-out")
NUMBERS = "CATEGORY=TRAIN:VALIDATION:HELD_OUT"
NEAR_EQUAL = 0.8
"""Similarity from which on two prompts are never in different parts; `evaluation.near_equal` has the same default."""


def split(prompts: Sequence[Prompt], numbers: Mapping[str, Sequence[int]], seed: int) -> dict[str, list[Prompt]]:
    """The rows of each part.

    Args:
        prompts: all rows.
        numbers: category -> how many rows go to each of `PARTS`.
        seed: of the order in which rows are drawn.

    Raises:
        UserError: a category has too few rows.
    """
    ordered = sorted(prompts, key=lambda row: sha256(f"{seed} {row.id}".encode()).hexdigest())
    left = {name: [row for row in ordered if (row.category or UNCATEGORISED) == name] for name in numbers}
    parts: dict[str, list[Prompt]] = {}
    for place, part in enumerate(PARTS):
        earlier = [asked_text(row) for rows in parts.values() for row in rows]
        parts[part] = []
        for name, rows in left.items():
            wanted = numbers[name][place]
            matches = find_leakage([asked_text(row) for row in rows], earlier, NEAR_EQUAL).matches
            free = [row for row, match in zip(rows, matches, strict=True) if match is None]
            if len(free) < wanted:
                raise UserError(
                    f"category {name!r} has {len(free)} rows left for {part}.jsonl, but {wanted} are wanted"
                )
            parts[part] += free[:wanted]
            left[name] = free[wanted:]
    return parts


def write(rows: Sequence[Prompt], path: Path, *, own_refusals: bool) -> None:
    """As a .jsonl file; without `own_refusals`, unsafe rows get no response, so that `data.refusal` is theirs."""
    lines = []
    for row in rows:
        line = {
            "id": row.id,
            "messages": [{"role": message.role, "content": message.content} for message in row.messages],
            "response": row.response if own_refusals or not row.unsafe else None,
            "label": "unsafe" if row.unsafe else "safe",
            "category": row.category or UNCATEGORISED,
            "pair_id": row.pair_id,
        }
        lines.append(json.dumps({key: value for key, value in line.items() if value is not None}, ensure_ascii=False))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def numbers_of(text: str) -> tuple[str, list[int]]:
    """`NAME=TRAIN:VALIDATION:HELD_OUT`."""
    name, _, numbers = text.rpartition("=")
    found = numbers.split(":")
    if not name or len(found) != len(PARTS) or not all(number.isdigit() for number in found):
        raise argparse.ArgumentTypeError(f"expected {NUMBERS}, such as spam=64:16:40, got {text}")
    return name, [int(number) for number in found]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="prompt files")
    parser.add_argument("--rows", type=numbers_of, nargs="+", required=True, metavar=NUMBERS)
    parser.add_argument("--out", type=Path, required=True, help="directory of the three files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-characters", type=int, default=2**31, help="leave out longer rows, answers included")
    parser.add_argument("--own-refusals", action="store_true", help="keep unsafe rows' own responses")
    args = parser.parse_args(argv)
    try:
        rows = [
            row
            for row in read_prompts(args.files, "").prompts
            if len(asked_text(row)) + len(row.response or "") <= args.max_characters
        ]
        parts = split(rows, dict(args.rows), args.seed)
        args.out.mkdir(parents=True, exist_ok=True)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for part, some in parts.items():
        write(some, args.out / f"{part}.jsonl", own_refusals=args.own_refusals)
        num_unsafe = sum(row.unsafe for row in some)
        print(f"{args.out / part}.jsonl: {num_unsafe} unsafe, {len(some) - num_unsafe} safe")
    return 0


if __name__ == "__main__":
    sys.exit(main())
