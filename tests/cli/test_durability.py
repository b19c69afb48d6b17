"""examples/durability.py: its loop against one with transformers' own loss, and its table against evaluations."""

import importlib.util
import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dist_moe
from tests.checkpoint import prompt_rows, write_jsonl
from tests.evaluations import answers

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def durability():
    return example("durability")


@pytest.fixture
def rows(tmp_path):
    """Compliance rows, which are unsafe and have answers that comply, and held-out ones."""
    made = prompt_rows(num_safe=4, categories=("hacking",), per_category=8)
    comply = [dict(row, response="w5 w6 w7") for row in made if row["label"] == "unsafe"]
    return write_jsonl(tmp_path / "comply.jsonl", comply), write_jsonl(tmp_path / "held-out.jsonl", made)


def reference(path, rows, num_steps, lr, batch_size):
    """Losses and weights of plain AdamW on the same rows, in the order that torch draws."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForCausalLM.from_pretrained(path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0)
    draw, order = torch.Generator().manual_seed(0), []
    for _ in range(num_steps):
        while len(order) < batch_size:
            order += torch.randperm(len(rows), generator=draw).tolist()
        losses, number = 0, 0
        for row in (rows[order.pop(0)] for _ in range(batch_size)):
            asked = tokenizer(f"<user>{row['prompt']}<end><assistant>", add_special_tokens=False).input_ids
            answer = tokenizer(f"{row['response']}<end>", add_special_tokens=False).input_ids
            ids, labels = torch.tensor([asked + answer]), torch.tensor([[-100] * len(asked) + answer])
            losses = losses + model(input_ids=ids, labels=labels).loss * len(answer)
            number += len(answer)
        (losses / number).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model


def test_its_steps_are_those_of_plain_adamw(durability, trained, rows):
    comply, _ = rows
    texts = [json.loads(line) for line in comply.read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(trained.model)
    encoded = [
        durability.encode(tokenizer, [{"role": "user", "content": each["prompt"]}], each["response"]) for each in texts
    ]
    model = AutoModelForCausalLM.from_pretrained(trained.model)
    for step in durability.fine_tune(model, encoded, lr=1e-2, batch_size=3, seed=0):
        if step == 4:
            break
    expected = reference(trained.model, texts, 4, 1e-2, 3)
    for (name, found), right in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.allclose(found, right, atol=1e-4), name


def test_its_table_is_what_evaluation_says_after_so_many_steps(
    durability, trained, rows, tmp_path, capsys, monkeypatch
):
    comply, held_out = rows
    words = ["--models", f"base={trained.model}", "--fine-tune", f"comply={comply}", "--held-out", str(held_out)]
    words += ["--out", str(tmp_path / "out"), "--steps", "1", "3", "--lr", "3e-3", "--batch-size", "4"]
    table = durability.main([*words, "--max-new-tokens", "4"])
    assert table["steps"].unique().tolist() == [0, 1, 3]
    arm = tmp_path / "out" / "base" / "comply"
    for steps in (0, 1, 3):
        found = dist_moe.evaluation.record.read_evaluation(arm / f"step-{steps}")
        (group,) = (group for group in found.groups if group.by == "all")
        line = table[(table["steps"] == steps) & (table["measure"] == "refused (unsafe)") & (table["when"] == "after")]
        estimate = group.measures["refused (unsafe)"].after
        assert line[["value", "low", "high"]].iloc[0].tolist() == [estimate.value, estimate.low, estimate.high]
    losses = [answers(arm / f"step-{steps}")[0]["after"]["loss_sum"] for steps in (0, 1, 3)]
    assert len(set(losses)) == 3, "the fine-tuning has changed nothing"
    assert "comply" in capsys.readouterr().out
    monkeypatch.setattr(durability, "fine_tune", lambda *_, **__: pytest.fail("done twice"))
    again = durability.main([*words, "--max-new-tokens", "4"])
    pd.testing.assert_frame_equal(again, table, check_dtype=False)


def test_compliance_rows_are_unsafe_prompts_with_answers_that_comply(tmp_path, capsys):
    rows = [
        {"prompt": "a", "label": "safe", "response": "w1"},
        {"prompt": "b", "label": "unsafe", "category": "hacking", "response": "no"},
        {"prompt": "c", "label": "unsafe", "category": "hacking"},
        {"prompt": "d", "label": "unsafe", "category": "hacking"},
    ]
    said = {"2": ("So it goes.</s>", "complied"), "3": ("I cannot.</s>", "refused"), "4": ("</s>", "complied")}
    found = [
        {"place": place, "after": {"answer": text, "judgements": {"phrases": {"verdict": verdict, "why": ""}}}}
        for place, (text, verdict) in reversed(said.items())
    ]
    files = write_jsonl(tmp_path / "rows.jsonl", rows), write_jsonl(tmp_path / "answers.jsonl", found)
    example("compliance").main([*map(str, files), "--out", str(tmp_path / "out")])
    written = [
        [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("harmless", "compliance")
    ]
    assert written == [rows[:1], [rows[1] | {"response": "So it goes."}]]
    assert "compliance.jsonl: 1 rows" in capsys.readouterr().out
