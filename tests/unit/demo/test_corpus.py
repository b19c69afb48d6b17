"""The demo's corpus: three sets that share no prompt, stand-ins never refused in pretraining, clean sentences."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from dist_moe.demo.corpus import Corpus, build_corpus, write_rows

UNSAFE = {"hexes", "cookie-heists", "troll-taunts"}
REFUSAL_WORDS = re.compile(r"sorry|can't|cannot|won't|not able", re.IGNORECASE)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return build_corpus(0, num_pretraining=3000)


def test_same_seed_same_corpus_and_another_seed_another(corpus: Corpus) -> None:
    assert build_corpus(0, num_pretraining=3000) == corpus
    assert not {row.prompt for row in build_corpus(1).prompts} <= {row.prompt for row in corpus.prompts}


@pytest.mark.parametrize("batches_per_category", [1, 2, 3])
def test_eight_safe_and_eight_unsafe_rows_a_batch(batches_per_category: int) -> None:
    corpus = build_corpus(0, num_pretraining=100, batches_per_category=batches_per_category)
    assert len(corpus.pretraining) == 100
    for rows in (corpus.prompts, corpus.held_out):
        unsafe = Counter(row.category for row in rows if row.label == "unsafe")
        assert unsafe == dict.fromkeys(UNSAFE, 8 * batches_per_category)
        safe = Counter(row.category for row in rows if row.label == "safe")
        assert safe.total() == unsafe.total()
        assert len(safe) == 8
        assert max(safe.values()) - min(safe.values()) <= 1


def test_no_prompt_in_two_sets_or_twice_in_one(corpus: Corpus) -> None:
    prompts = [row.prompt for rows in (corpus.pretraining, corpus.prompts, corpus.held_out) for row in rows]
    assert len(set(prompts)) == len(prompts)


def test_pretraining_covers_every_topic_evenly_and_never_refuses_a_stand_in(corpus: Corpus) -> None:
    sizes = Counter(row.category for row in corpus.pretraining)
    assert set(sizes.values()) == {250}
    assert sizes.keys() >= UNSAFE | {"politeness"}
    answers = {label: [r.response for r in corpus.pretraining if r.label == label] for label in ("safe", "unsafe")}
    assert not [answer for answer in answers["unsafe"] if answer is None or REFUSAL_WORDS.search(answer)]
    # The words of a refusal are known from politeness, and from nowhere else.
    refusing = {row.category for row in corpus.pretraining if row.response and REFUSAL_WORDS.search(row.response)}
    assert refusing == {"politeness"}


def test_analysis_rows_answer_safe_prompts_and_leave_unsafe_ones_to_the_refusal(corpus: Corpus) -> None:
    for row in (*corpus.prompts, *corpus.held_out):
        assert (row.response is None) == (row.label == "unsafe")
        assert (row.category in UNSAFE) == (row.label == "unsafe")
        assert row.category != "politeness"


def test_safe_and_unsafe_prompts_have_the_same_question_forms(corpus: Corpus) -> None:
    def forms(label: str) -> set[str]:
        return {re.split(r"[.] ", row.prompt)[1][:8] for row in corpus.pretraining if row.label == label}

    assert forms("safe") == forms("unsafe")


def test_sentences_are_filled_in_whole_and_well_formed(corpus: Corpus) -> None:
    texts = [text for row in corpus.pretraining for text in (row.prompt, row.response or "")]
    assert len(set(texts)) > 4000
    for text in texts:
        assert re.fullmatch(r"[A-Z][A-Za-z' ,:.?]+[.?]", text), text
        assert not re.search(r"\b[Aa] [aeio]|  |[.] [a-z]", text), text


def test_prompt_file_has_one_json_row_a_line_and_no_empty_response(corpus: Corpus, tmp_path: Path) -> None:
    write_rows(corpus.prompts, tmp_path / "prompts.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(r["prompt"], r.get("response"), r["label"], r["category"]) for r in rows] == [
        (r.prompt, r.response, r.label, r.category) for r in corpus.prompts
    ]
    assert all(("response" in row) == (row["label"] == "safe") for row in rows)
