"""Reads an evaluation's files, for tests."""

import json
from pathlib import Path


def value(directory: Path, measure: str, when: str, *, by: str = "all", name: str = "all", kind: str | None = None):
    """One number of evaluation.json; of the only kind of rows, or of `kind`."""
    document = json.loads((directory / "evaluation.json").read_text())
    kinds = {group["kind"] for group in document["groups"]}
    chosen = kind or next(iter(kinds))
    assert kind or len(kinds) == 1, kinds
    groups = [g for g in document["groups"] if (g["kind"], g["by"], g["name"]) == (chosen, by, name)]
    assert len(groups) == 1, (chosen, by, name)
    estimate = groups[0]["measures"].get(measure, {}).get(when)
    return None if estimate is None else estimate["value"]


def answers(directory: Path) -> list[dict]:
    """The rows of answers.jsonl."""
    return [json.loads(line) for line in (directory / "answers.jsonl").read_text().splitlines()]
