"""What a model can do, as lm-evaluation-harness measures it: `lm_eval`, another program, which gets a model directory.

It runs as a process of its own: its settings and seeds are not ours, and what it prints is not our report. It decides
what it downloads; dist_moe downloads nothing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dist_moe.errors import UserError, shown
from dist_moe.files import read_json

PROGRAM = "lm_eval"
RESULTS = "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tasks:
    """What the harness is asked to run."""

    names: tuple[str, ...]
    """Tasks or groups, as it calls them."""
    include: Path | None = None
    """Directory with further tasks, in the harness' YAML format."""
    limit: int | None = None
    """At most so many rows of each task, for trials."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A metric's value for one model."""

    value: float
    standard_error: float | None
    """As the harness says; None: it gives none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One metric of one task or group."""

    task: str
    metric: str
    """With the harness' filter behind a comma, unless that is none: `exact_match,strict-match`."""
    num_rows: int | None
    """None: of a group."""
    before: Level | None
    after: Level


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The harness' table, before and after."""

    version: str
    """Of the harness."""
    tasks: list[str]
    """Those that were asked for."""
    limit: int | None
    """Rows of each task at most. None: all."""
    lines: list[Capability]


def require_harness() -> None:
    """Raise a one-line `UserError` unless the harness is installed."""
    if find_spec(PROGRAM) is None:
        raise UserError("--harness: lm-evaluation-harness is not installed: pip install 'moe-repair[harness]'")


def run_harness(model: Path, tasks: Tasks, *, dtype: str, chat: bool) -> dict[str, Any]:
    """The harness' results of a model directory, as it writes them.

    Args:
        model: a directory that transformers loads.
        tasks: what to run.
        dtype: the weights' type in it: auto, float32, ...
        chat: apply the tokenizer's chat template.

    Raises:
        UserError: it failed, with its last line; or its results cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", PROGRAM, "--model", "hf", "--model_args", f"pretrained={model},dtype={dtype}"]
        words += ["--tasks", ",".join(tasks.names), "--output_path", f"{folder}/{RESULTS}.json", "--batch_size", "8"]
        words += ["--include_path", str(tasks.include)] if tasks.include else []
        words += ["--limit", str(tasks.limit)] if tasks.limit else []
        words += ["--apply_chat_template"] if chat else []
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        files = sorted(Path(folder).glob(f"{RESULTS}*.json"))
        if done.returncode != 0 or not files:
            said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
            raise UserError(
                f"--harness {','.join(tasks.names)}: {PROGRAM} failed on {model} with status {done.returncode}: "
                f"{shown(said[-1] if said else 'it said nothing', 300)}: give the command that it can run, or leave "
                "--harness out"
            )
        found: dict[str, Any] = read_json(files[-1], "the harness' results")
        return found


def capabilities(tasks: Tasks, before: dict[str, Any] | None, after: dict[str, Any]) -> Capabilities:
    """The results of one model, or of two, as one table.

    Raises:
        UserError: they are not as the harness writes them.
    """
    levels = None if before is None else dict(_levels(before))
    sizes = after.get("n-samples", {})
    lines = [
        Capability(
            task=task,
            metric=metric,
            num_rows=sizes[task]["effective"] if task in sizes else None,
            before=None if levels is None else levels.get((task, metric)),
            after=level,
        )
        for (task, metric), level in _levels(after)
    ]
    return Capabilities(
        version=str(after.get("lm_eval_version", "unknown")), tasks=list(tasks.names), limit=tasks.limit, lines=lines
    )


def _levels(results: dict[str, Any]) -> list[tuple[tuple[str, str], Level]]:
    """((task, metric), level) in the harness' order; groups with a number of their own included."""
    found = []
    for task, values in {**results.get("results", {}), **results.get("groups", {})}.items():
        for key, value in values.items():
            metric, mark, how = key.partition(",")
            if not mark or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = values.get(f"{metric}_stderr,{how}")
            level = Level(value=float(value), standard_error=float(error) if isinstance(error, int | float) else None)
            found.append(((task, metric if how == "none" else key), level))
    return found
