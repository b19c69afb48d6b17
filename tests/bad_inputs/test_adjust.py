"""Weights of batches, repeats, and adjustments in mid-run that cannot be."""

import json
import shutil
from pathlib import Path

import pytest

from tests.bad_inputs.harness import Case, check, ids, nothing

TRAIN = "train --config run.yaml --run-dir new --train.masks run/masks.zarr"
ADJUST = f"{TRAIN} --train.adjust.every 1"
ANEW = f"{ADJUST} --train.adjust.below 0.5 --train.adjust.action reidentify"


def rows(*given: dict):
    return lambda: Path("valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))


SETTINGS = {
    "every 0": (
        "--train.adjust.every 0 --train.adjust.below 0.5",
        ("train.adjust.every: ", "greater than or equal to 1"),
    ),
    "a limit alone": ("--train.adjust.below 0.5", ("a limit is set, but not train.adjust.every",)),
    "no limit": ("--train.adjust.every 1", ("a rate is weak where it is low: set train.adjust.below, and not above",)),
    "a rate above": (
        "--train.adjust.every 1 --train.adjust.above 0.5",
        ("train.adjust.measure is refusal_unsafe", "set train.adjust.below, and not above"),
    ),
    "a loss below": (
        "--train.adjust.every 1 --train.adjust.measure loss_safe --train.adjust.below 0.5",
        ("train.adjust.measure is loss_safe", "set train.adjust.above, and not below"),
    ),
    "both limits": (
        "--train.adjust.every 1 --train.adjust.below 0.5 --train.adjust.above 1",
        ("set train.adjust.below, and not above",),
    ),
    "a rate of 2": (
        "--train.adjust.every 1 --train.adjust.below 2",
        ("train.adjust.below: ", "less than 1"),
    ),
    "an unknown measure": ("--train.adjust.measure refusals", ("train.adjust.measure: expected 'refusal_unsafe'",)),
    "masks by hand and by itself": (
        "--train.adjust.every 1 --train.adjust.below 0.5 --train.adjust.action both --train.revisions 1:other.zarr",
        ("train.revisions names some too: use one of the two",),
    ),
    "nothing grows": (
        "--train.adjust.every 1 --train.adjust.below 0.5 --train.adjust.factor 1",
        ("no larger weight and no more steps", "set train.adjust.factor above 1"),
    ),
    "repeats without a budget": (
        "--train.adjust.every 1 --train.adjust.below 0.5 --train.adjust.repeats 2",
        ("train.adjust.repeats is 2 and train.adjust.budget 0: set both",),
    ),
    "experts found anew that nobody trains": (
        "--train.adjust.every 1 --train.adjust.below 0.5 --train.adjust.action both --train.trains routers "
        "--model.path gone",
        ("train.adjust.action is both", "train.trains is routers, which trains none", "set train.adjust.action to"),
    ),
    "repeats that nobody reads": (
        "--train.adjust.every 1 --train.adjust.below 0.5 --train.adjust.action reidentify --train.adjust.repeats 2",
        ("which only reweight reads",),
    ),
    "a judge that is none": (
        "--train.adjust.every 1 --train.adjust.below 0.5 --evaluation.judges nobody",
        ("nobody",),
    ),
    "other tokens than were counted": (
        "--train.adjust.every 1 --train.adjust.below 0.5 --train.adjust.action reidentify --analysis.tokens all",
        ("analysis.tokens content, but here it is all",),
    ),
    "no file": (
        "--train.adjust.every 1 --train.adjust.below 0.5 --train.adjust.data gone.jsonl",
        ("gone.jsonl",),
    ),
    "a weight of nobody": ("--train.weights nobody=2", ("'nobody' is no category", "hacking, weapons")),
    "a weight below 0": ("--train.weights hacking=-1", ("train.weights: expected greater than or equal to 0",)),
    "no weight at all": ("--train.weights hacking=0 weapons=0", ("every batch has weight 0",)),
    "a budget of no token": ("--train.max-tokens 0", ("train.max_tokens: ", "greater than or equal to 1")),
    "a budget beyond the last epoch": (
        "--train.max-tokens 1000000 --train.epochs 2",
        ("train.max_tokens is 1,000,000, but train.epochs 2 of these rows has ", "raise train.epochs"),
    ),
    "repeated 0 times": ("--train.repeats hacking=0", ("train.repeats: expected greater than or equal to 1",)),
}
CASES = [Case(name, nothing, f"{TRAIN} {words}", says) for name, (words, says) in SETTINGS.items()]
CASES += [
    Case(
        "data without a category",
        rows({"prompt": "w1", "label": "unsafe", "category": "hacking"}, {"prompt": "w2", "label": "safe"}),
        f"{ADJUST} --train.adjust.below 0.5 --train.adjust.data valid.jsonl",
        ("train.adjust.data: there is no unsafe row of the category 'weapons'",),
    ),
    Case(
        "safe rows without the categories",
        rows({"prompt": "w1", "label": "safe", "response": "w2"}),
        f"{ADJUST} --train.adjust.measure loss_safe --train.adjust.above 1 --train.adjust.data valid.jsonl",
        ("there is no safe row of the category 'hacking'",),
    ),
    Case(
        "masks without their counts",
        lambda: shutil.rmtree("run/counts.zarr"),
        ANEW,
        ("holds masks only, and what they were selected from is not at",),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=ids(CASES))
def test_adjust(copy, capsys, case):
    check(case, capsys)
