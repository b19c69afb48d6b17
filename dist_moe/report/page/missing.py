"""What a run has not done yet, and the command that does it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from markupsafe import Markup

from dist_moe.report.page.blocks import Cell, Section, bullets, code
from dist_moe.report.page.contents import RunContents


def missing(run: RunContents, key: str) -> Section | None:
    """None: nothing is."""
    said = [*_steps(run), *run.notes]
    return Section("missing", "What is missing here", bullets(said)) if said else None


def _steps(run: RunContents) -> Iterator[Cell]:
    """Sentences, each with its command; a model's evaluation is whole by itself."""
    if run.evaluation is not None and run.evaluation.facts.experts_digest is None:
        return
    config = next((name for name in ("train", "analyze", "count") if (run.path / f"{name}.yaml").is_file()), None)
    place = run.path / f"{config}.yaml" if config else Path("run.yaml")
    if run.masks is None:
        yield _told("No experts were selected", "dist-moe", "analyze", "--config", place)
    if run.training is None and run.steps:
        yield _told("Training has not ended; the same command goes on", "dist-moe", "train", "--config", place)
    elif run.training is None:
        yield _told("Nothing was trained", "dist-moe", "train", "--config", place)
    if run.evaluation is None and run.training is not None:
        yield _told("It was not evaluated", "dist-moe", "evaluate", run.path, "--data", "HELD-OUT.jsonl")
    elif run.evaluation is not None and "held out" not in run.evaluation.kinds:
        yield _told("No held-out rows were evaluated", "dist-moe", "evaluate", run.path, "--data", "HELD-OUT.jsonl")


def _told(what: str, *words: object) -> Markup:
    return Markup("{}: {}").format(what, code(shlex.join(map(str, words))))
