"""Experts that an evaluation silences get no token: as in plain transformers with their logits at -inf."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import dist_moe
from dist_moe.cli.main import main
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import SoloComm
from tests.checkpoint import prompt_rows, write_jsonl
from tests.evaluations import answers
from tests.tiny import E, L, tiny_model, token_ids


def silence(model, silent_LE):
    """A plain model whose routers never choose these experts: softmax over all, the best k, made to sum to one."""
    for gate, silent_E in zip((layer.mlp.gate for layer in model.model.layers), silent_LE, strict=True):

        def forward(hidden, gate=gate, silent_E=silent_E):
            logits = hidden.reshape(-1, gate.hidden_dim) @ gate.weight.T
            weights, index = logits.masked_fill(torch.from_numpy(silent_E), -torch.inf).softmax(-1).topk(gate.top_k)
            return logits, weights / weights.sum(-1, keepdim=True), index

        gate.forward = forward
    return model


def some_experts(num):
    silent_LE = np.random.default_rng(4).random((L, E)) < 0.4
    silent_LE[:, num:] = False
    return silent_LE


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_logits_are_those_of_a_router_that_never_chooses_them(family):
    silent_LE, ids = some_experts(6), token_ids(1)
    model, plain = adopt(tiny_model(family), SoloComm(torch.device("cpu"))), tiny_model(family)
    before = plain(ids).logits
    if family == "gpt_oss":  # its routers have a bias, so that nothing of the plain model has to be replaced
        for layer, silent_E in zip(plain.model.layers, silent_LE, strict=True):
            layer.mlp.router.bias[torch.from_numpy(silent_E)] = -torch.inf
    else:
        silence(plain, silent_LE)
    with model.route_mask.silencing(torch.from_numpy(silent_LE)), model.batch():
        found = model.module(ids).logits
    expected = plain(ids).logits
    assert torch.allclose(found, expected, atol=1e-5)
    assert (expected - before).abs().max() > 1e-2, "silencing changes nothing here"
    with model.batch():
        assert torch.allclose(model.module(ids).logits, before, atol=1e-5), "silence goes on"


@torch.no_grad()
def test_before_and_after_of_an_evaluation_are_plain_transformers(trained, tmp_path):
    rows = prompt_rows(num_safe=4, categories=("hacking",), per_category=4)
    data, out = write_jsonl(tmp_path / "x.jsonl", rows), tmp_path / "out"
    words = ["--silence", trained.masks, "--batches", 1, "--out", out, "--data.refusal", "sorry w1 w2"]
    assert main(["evaluate", str(trained.model), "--data", str(data), *map(str, words)]) == 0
    tokenizer = AutoTokenizer.from_pretrained(trained.model)
    mask_LE = dist_moe.MaskStore.open(trained.masks).masks[1]
    plain = {when: AutoModelForCausalLM.from_pretrained(trained.model).eval() for when in ("before", "after")}
    silence(plain["after"], mask_LE)
    changed = 0
    for found in answers(out):
        row = rows[int(found["place"]) - 1]
        asked = tokenizer(f"<user>{row['prompt']}<end><assistant>", add_special_tokens=False).input_ids
        said = tokenizer(f"{row.get('response', 'sorry w1 w2')}<end>", add_special_tokens=False).input_ids
        for when, model in plain.items():
            log_p = model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1].log_softmax(-1)
            assert found[when]["loss_sum"] == pytest.approx(-log_p[range(len(said)), said].sum().item(), abs=1e-4)
        changed += found["before"]["loss_sum"] != found["after"]["loss_sum"]
    assert changed == len(rows)
    facts = json.loads((out / "evaluation.json").read_text())["facts"]["silenced"]
    assert (facts["masks"], facts["batches"], facts["num_experts"]) == ("masks.zarr", [1], mask_LE.sum())


def test_what_it_says_and_what_it_refuses(trained, tmp_path, capsys):
    data = write_jsonl(tmp_path / "x.jsonl", prompt_rows(num_safe=2, categories=("hacking",), per_category=2))
    model = [str(trained.model), "--data", str(data), "--out", str(tmp_path / "out")]
    assert main(["evaluate", *model, "--silence", str(trained.masks)]) == 0
    num_experts = dist_moe.MaskStore.open(trained.masks).union().sum()
    said = f"After is the same model without the {num_experts} experts of masks.zarr, all batches"
    assert said in capsys.readouterr().out
    for words, says in (
        ([str(trained.run_dir), "--silence", str(trained.masks)], "in place of a run its base model or its export"),
        ([*model, "--silence", str(trained.masks), "--batches", "7"], "has no batch 7: it has batches 0 to 1"),
        ([*model, "--batches", "0"], "--batches says whose experts are silenced: give --silence STORE"),
        ([*model, "--silence", str(trained.masks), "--against", str(trained.model)], "give no --against"),
    ):
        assert main(["evaluate", *words]) == 2
        assert says in capsys.readouterr().err
