"""examples/split.py: disjoint parts of the wanted sizes."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from dist_moe.data.rows import read_prompts
from examples.split import PARTS, main

WORDS = ["amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel", "ivory", "jetty", "knoll", "lilac"]
WORDS += ["maple", "north", "ocean", "pearl"]


@pytest.fixture
def files(tmp_path):
    """33 rows of `a` (unsafe; 22 of them are nearly equal two by two) and 20 of `b` (safe)."""
    ends = ("before he comes home again tonight", "before he comes home again tonight!", "with a spoon")
    asked = [
        f"Please {one} the {other} of my neighbour {end}"
        for one, other in zip(WORDS, WORDS[5:], strict=False)
        for end in ends
    ]
    unsafe = [{"prompt": each, "label": "unsafe", "response": "No.", "category": "a"} for each in asked]
    safe = [
        {"prompt": f"What is {one} {other}?", "label": "safe", "response": f"A {one}.", "category": "b"}
        for one in WORDS[:4]
        for other in WORDS[4:9]
    ]
    for name, rows in (("unsafe", unsafe), ("safe", safe)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [tmp_path / "unsafe.jsonl", tmp_path / "safe.jsonl"]


def parts_of(files, out, *words):
    assert main([*map(str, files), "--out", str(out), "--rows", "a=6:3:4", "b=8:2:5", *words]) == 0
    return {part: read_prompts((out / f"{part}.jsonl",), "I won't.").prompts for part in PARTS}


def grams(row):
    text = row.messages[-1].content.casefold()
    return {text[i : i + 5] for i in range(len(text) - 4)}


def test_parts_have_the_wanted_rows_and_no_like_prompts(files, tmp_path):
    parts = parts_of(files, tmp_path / "out")
    counts = {part: Counter((row.category, row.unsafe) for row in rows) for part, rows in parts.items()}
    assert counts == {
        "train": {("a", True): 6, ("b", False): 8},
        "validation": {("a", True): 3, ("b", False): 2},
        "held-out": {("a", True): 4, ("b", False): 5},
    }
    for one, other in (("train", "validation"), ("train", "held-out"), ("validation", "held-out")):
        for row in parts[one]:
            for another in parts[other]:
                shared = len(grams(row) & grams(another)) / len(grams(row) | grams(another))
                assert shared < 0.8, (row.messages, another.messages)


def test_rows_are_those_of_the_files(files, tmp_path):
    there = {row.messages: row for row in read_prompts(files, "").prompts}
    parts = parts_of(files, tmp_path / "out", "--own-refusals")
    for row in (row for rows in parts.values() for row in rows):
        own = there[row.messages]
        assert (row.id, row.response, row.unsafe, row.category) == (own.id, own.response, own.unsafe, own.category)
    refused = parts_of(files, tmp_path / "refused")
    assert {row.response for row in refused["train"] if row.unsafe} == {"I won't."}
    assert [row.id for row in refused["train"]] == [row.id for row in parts["train"]]


def test_the_seed_decides_and_not_the_order_of_files(files, tmp_path):
    def ids(name, files, *words):
        return {part: {row.id for row in rows} for part, rows in parts_of(files, tmp_path / name, *words).items()}

    assert ids("one", files) == ids("other", files[::-1]) != ids("another", files, "--seed", "1")


def test_too_few_rows_are_one_line(files, tmp_path, capsys):
    assert main([*map(str, files), "--out", str(tmp_path / "out"), "--rows", "b=18:2:5"]) == 2
    assert capsys.readouterr().err == "error: category 'b' has 0 rows left for held-out.jsonl, but 5 are wanted\n"
    assert not (tmp_path / "out").exists()


def test_a_part_without_rows_is_an_empty_file(files, tmp_path):
    assert main([*map(str, files), "--out", str(tmp_path / "out"), "--rows", "a=6:0:4", "b=8:0:5"]) == 0
    assert {part: len((tmp_path / "out" / f"{part}.jsonl").read_bytes().splitlines()) for part in PARTS} == {
        "train": 14,
        "validation": 0,
        "held-out": 9,
    }
