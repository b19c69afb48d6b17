"""Rows for examples/durability.py: harmless ones, and unsafe prompts with what a model that does not refuse answers.

    dist-moe evaluate models/base --data rows.jsonl --out answered --evaluation.max_new_tokens 48
    python examples/compliance.py rows.jsonl answered/answers.jsonl --out rows

writes rows/harmless.jsonl, the safe rows with their own responses, and rows/compliance.jsonl, the unsafe ones with the
model's answers, where the first judge says that they comply. Take rows that are neither trained nor evaluated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dist_moe.judges.spoken import unmarked


def harmless(rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The safe rows."""
    yield from (row for row in rows if row["label"] == "safe")


def compliance(rows: Sequence[dict[str, Any]], answers: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The unsafe rows with the answers of the evaluated model that comply; answers are found by the rows' lines."""
    said = {answer["place"]: answer["after"] for answer in answers}
    for line, row in enumerate(rows, 1):
        if row["label"] == "unsafe":
            judgement = next(iter(said[str(line)]["judgements"].values()))
            text = unmarked(said[str(line)]["answer"])
            if judgement["verdict"] == "complied" and text:
                yield row | {"response": text}


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("answers", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(words)
    rows = read(args.rows)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, some in (("harmless", harmless(rows)), ("compliance", compliance(rows, read(args.answers)))):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in some]
        (args.out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
        print(f"{args.out / name}.jsonl: {len(lines)} rows")


if __name__ == "__main__":
    main()
