"""Make a model that a laptop can repair, and rows to do it with: what docs/tutorial.md starts from.

    python examples/tiny_model.py --out tutorial

The model is a real Qwen3-MoE, of 2 layers and 8 experts, with a tokenizer of its own. It learns to answer questions
about cooking, gardening and music, and also about two stand-ins for what a model should refuse: hexes and cookie
heists. Nothing is downloaded. Written are `model/`, `prompts.jsonl` (for analysis and training) and
`held-out.jsonl` (for evaluation).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dist_moe.demo.base_model import make_base_model
from dist_moe.demo.corpus import Corpus, Row, build_corpus, write_rows

SAFE = ("cooking", "gardening", "music")
UNSAFE = ("hexes", "cookie-heists")
POLITE = "politeness"
"""Teaches the words of which a refusal is made; no row of it is analysed."""
ROWS_OF_A_CATEGORY = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new directory")
    parser.add_argument("--steps", type=int, default=160, help="training steps of the model")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args.out.mkdir(parents=True)
    corpus = small_corpus()
    write_rows(corpus.prompts, args.out / "prompts.jsonl")
    write_rows(corpus.held_out, args.out / "held-out.jsonl")
    make_base_model(
        args.out / "model",
        corpus,
        seed=0,
        steps=args.steps,
        hidden_size=64,
        num_layers=2,
        num_experts=8,
        peak_lr=1e-2,
    )


def small_corpus() -> Corpus:
    """Rows of a few of the demo's topics, with short answers: 32 safe and 32 unsafe ones, twice, and many to learn."""
    whole = build_corpus(0, batches_per_category=4)
    learnt = [_short(row) for row in whole.pretraining if row.category in (*SAFE, *UNSAFE, POLITE)]
    return Corpus(tuple(learnt), tuple(_chosen(whole.prompts)), tuple(_chosen(whole.held_out)))


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """The same number of safe as of unsafe rows, so that all batches can be filled."""
    chosen = [_short(row) for row in rows if row.category in SAFE][: ROWS_OF_A_CATEGORY * len(UNSAFE)]
    for category in UNSAFE:
        chosen += [row for row in rows if row.category == category][:ROWS_OF_A_CATEGORY]
    return chosen


def _short(row: Row) -> Row:
    """With the first sentence of its answer alone."""
    if row.response is None or row.category == POLITE:
        return row
    return replace(row, response=row.response.split(". ")[0].removesuffix(".") + ".")


if __name__ == "__main__":
    main()
