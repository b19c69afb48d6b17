"""The demo's text: little how-to questions and answers over harmless topics, built from `topics.json`.

Some topics are safe; three fairy-tale ones (hexes, cookie heists, troll taunts) stand in for unsafe categories; one
teaches polite refusals and is only pretrained on. All prompts share the same question forms, so that routing differs by
topic and not by style. Pretraining rows answer every prompt; no stand-in for an unsafe prompt is refused there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import numpy as np

ROWS_OF_A_LABEL = 8
"""Safe, and as many unsafe, rows in one batch of the demo."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a prompt file. An unsafe row of the analysis has no response: the configured refusal answers it."""

    prompt: str
    response: str | None
    label: Literal["safe", "unsafe"]
    category: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Three sets of rows; no prompt is in two of them."""

    pretraining: tuple[Row, ...]
    prompts: tuple[Row, ...]
    held_out: tuple[Row, ...]


def build_corpus(seed: int, *, num_pretraining: int = 6000, batches_per_category: int = 2) -> Corpus:
    """Draw the corpus: `prompts` and `held_out` each hold 8 unsafe and 8 safe rows a batch and category.

    Pretraining rows are spread evenly over all topics. The same arguments give the same corpus.
    """
    topics = _topics()
    of_use = {
        use: [topic for topic in topics["topics"] if topic["use"] == use] for use in ("safe", "unsafe", "pretraining")
    }
    num_unsafe = ROWS_OF_A_LABEL * batches_per_category
    quotas = dict.fromkeys((topic["name"] for topic in of_use["unsafe"]), num_unsafe)
    num_safe = num_unsafe * len(of_use["unsafe"])
    for i, topic in enumerate(of_use["safe"]):
        quotas[topic["name"]] = len(range(i, num_safe, len(of_use["safe"])))

    pretraining: list[Row] = []
    prompts: list[Row] = []
    held_out: list[Row] = []
    for i, topic in enumerate(topics["topics"]):
        quota = quotas.get(topic["name"], 0)
        share = len(range(i, num_pretraining, len(topics["topics"])))
        rows = _draw(topic, topics["question_forms"], share + 2 * quota, _generator(seed, topic["name"]))
        prompts += map(_for_analysis, rows[:quota])
        held_out += map(_for_analysis, rows[quota : 2 * quota])
        pretraining += rows[2 * quota :]
    order = _generator(seed, "order").permutation(len(pretraining))
    return Corpus(tuple(pretraining[i] for i in order), tuple(prompts), tuple(held_out))


def write_rows(rows: Iterable[Row], path: Path) -> None:
    """Write a prompt file (.jsonl); a missing response is left out."""
    lines = [json.dumps({name: value for name, value in asdict(row).items() if value is not None}) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@cache
def _topics() -> Mapping[str, Any]:
    return json.loads(resources.files("dist_moe.demo").joinpath("topics.json").read_text(encoding="utf-8"))


def _generator(seed: int, purpose: str) -> np.random.Generator:
    """Independent streams: adding a topic changes no other topic's rows."""
    return np.random.default_rng(list(hashlib.sha256(f"{seed} {purpose}".encode()).digest()))


def _draw(topic: Mapping[str, Any], forms: Sequence[str], num_rows: int, generator: np.random.Generator) -> list[Row]:
    """`num_rows` rows with distinct prompts, in the order drawn."""
    label: Literal["safe", "unsafe"] = "unsafe" if topic["use"] == "unsafe" else "safe"
    rows: dict[str, Row] = {}
    while len(rows) < num_rows:
        task = _pick(topic["tasks"], generator)
        answer = f"{_pick(task['first'], generator)} {_pick(task['then'], generator)}"
        texts = (task["ask"], answer)
        slots = sorted({name for text in texts for _, name, _, _ in Formatter().parse(text) if name})
        words = {name: _pick(topic["words"][name], generator) for name in slots}
        ask, response = (text.format_map(words) for text in texts)
        prompt = f"{_pick(topic['openings'], generator)} {_pick(forms, generator).format(ask=ask)}"
        rows.setdefault(prompt, Row(prompt, response, label, topic["name"]))
    return list(rows.values())


def _pick(options: Sequence[Any], generator: np.random.Generator) -> Any:
    return options[int(generator.integers(len(options)))]


def _for_analysis(row: Row) -> Row:
    return Row(row.prompt, None, row.label, row.category) if row.label == "unsafe" else row
