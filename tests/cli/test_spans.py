"""`analysis.tokens: span`: only the tokens of the marked text are counted, on one rank and on two."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_moe.cli.main import main
from dist_moe.store.read import MaskStore
from tests.checkpoint import WORDS, prompt_rows, write_jsonl
from tests.cli.test_launch import deepspeed
from tests.tiny import E, K, L

IDS = {"<end>": 1, "<user>": 4, "<assistant>": 5, "sorry": 7} | {word: 8 + i for i, word in enumerate(WORDS)}
SPANS = ([2, 3, 4], [8, 9, 10], [5, 6, 7, 8, 9], [])
"""Tokens of <user> w w w w w w <end> <assistant> w w ...: in the prompt, in the response, over the boundary, none."""


def marked_rows():
    """Rows, and the tokens of each with the positions that its span has."""
    rows, tokens = [], {}
    for i, row in enumerate(prompt_rows()):
        words = f"<user> {row['prompt']} <end> <assistant> {row.get('response', 'sorry w1 w2')} <end>".split()
        positions = SPANS[i % len(SPANS)]
        text = " ".join(words[p] for p in positions).replace(" <end> <assistant> ", "<end><assistant>")
        text = text.replace("<assistant> ", "<assistant>")
        rows.append({**row, "id": f"row-{i:02}"} | ({"span": text} if positions else {}))
        tokens[f"row-{i:02}"] = ([IDS[word] for word in words], positions)
    return rows, tokens


def by_hand(path, tokens):
    """id -> [L, E]: top-k of plain transformers' router logits at the span's tokens."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    counts = {}
    for name, (ids, positions) in tokens.items():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), output_router_logits=True).router_logits
        chosen = [layer.view(len(ids), E)[positions].topk(K).indices.flatten() for layer in logits]
        counts[name] = np.array([torch.bincount(index, minlength=E).numpy() for index in chosen])
    return counts


def counts_of(masks):
    store = MaskStore.open(masks)
    assert store.counted_tokens == "span"
    frame = store.counts.prompts
    return {
        row.id: (store.counts.prompt_counts[i], row.tokens)
        for i, row in zip(range(len(frame)), frame.itertuples(), strict=True)
    }


@pytest.mark.parametrize("num_ranks", [1, pytest.param(2, marks=pytest.mark.long)])
def test_counts_are_those_of_the_marked_tokens(fresh, num_ranks):
    rows, tokens = marked_rows()
    write_jsonl(fresh.data, rows)
    arguments = ["--config", str(fresh.config), "--analysis.tokens", "span", "--analysis.threshold", "0.01"]
    if num_ranks == 1:
        assert main(["analyze", *arguments]) == 0
    else:
        done = deepspeed("analyze", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
    found, expected = counts_of(fresh.masks), by_hand(fresh.model, tokens)
    assert found.keys() == expected.keys()
    assert {name: num for name, (_, num) in found.items()} == {name: len(at) for name, (_, at) in tokens.items()}
    for name, (counts_LE, num) in found.items():
        assert counts_LE.shape == (L, E)
        assert (counts_LE.sum(1) == K * num).all()
        assert np.array_equal(counts_LE, expected[name]), name


def test_a_wrong_span_is_one_line_whatever_is_counted(fresh, capsys):
    rows = prompt_rows()
    rows[3]["span"] = "w0 w0 w0 w0 w0 w0 w0"
    write_jsonl(fresh.data, rows)
    assert main(["analyze", "--config", str(fresh.config)]) == 2
    line = capsys.readouterr().err.strip()
    assert f"{fresh.data}:4: `span` 'w0 w0 w0 w0 w0 w0 w0' is not in this row" in line


def test_cut_spans_are_said_and_an_arm_without_any_is_refused(fresh, capsys):
    rows, tokens = marked_rows()
    write_jsonl(fresh.data, rows)
    arguments = ["analyze", "--config", str(fresh.config), "--analysis.tokens", "span", "--analysis.threshold", "0.01"]
    assert main([*arguments, "--data.max_length", "12"]) == 0
    num_cut = sum(len(ids) - 12 > at[0] for ids, at in tokens.values() if at)
    assert num_cut > 0
    assert f"rows whose span lost tokens to data.max_length = 12: {num_cut}\n" in capsys.readouterr().out
    write_jsonl(fresh.data, [{k: v for k, v in row.items() if k != "span"} for row in rows])
    assert main([*arguments, "--overwrite"]) == 2
    assert "give these rows what it counts: a response, or with tokens: span a span" in capsys.readouterr().err


def test_data_hash_knows_spans(fresh):
    rows, _ = marked_rows()
    arguments = ["analyze", "--config", str(fresh.config), "--overwrite"]
    write_jsonl(fresh.data, rows)
    assert main(arguments) == 0
    first = MaskStore.open(fresh.masks).provenance["data_hash"]
    write_jsonl(fresh.data, [json.loads(json.dumps(row)) | {"span": row["prompt"]} for row in rows])
    assert main(arguments) == 0
    assert MaskStore.open(fresh.masks).provenance["data_hash"] != first
