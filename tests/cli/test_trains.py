"""Routers and dense weights as a person trains them: resumed, exported, applied, verified, evaluated."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dist_moe.cli.main import main
from dist_moe.evaluation.curve import alpha_place
from tests.cli.test_resume import result
from tests.evaluations import value

TURNS = ("--train.trains", "experts_and_routers", "--train.rounds", "experts:3", "routers:2")


def run(*words):
    return main([str(word) for word in words])


def train(given, run_dir, *more):
    return run("train", "--config", given.config, "--train.masks", given.masks, "--run-dir", run_dir, *more)


def dense_of(run_dir):
    return {name: weight.numpy().tobytes() for name, weight in load_file(run_dir / "experts/dense.safetensors").items()}


@pytest.fixture(scope="module")
def turns(trained, tmp_path_factory):
    """A run of alternating rounds."""
    run_dir = tmp_path_factory.mktemp("turns") / "run"
    assert train(trained, run_dir, *TURNS, "--train.lr", "1e-2", "--train.epochs", "4") == 0
    return run_dir


def test_metrics_say_whose_turn_it_was(turns):
    lines = [json.loads(line) for line in (turns / "metrics.jsonl").read_text().splitlines()]
    assert [line["trains"] for line in lines] == ["experts"] * 3 + ["routers"] * 2 + ["experts"] * 3
    assert [line["num_active"] > 0 for line in lines] == [line["trains"] == "experts" for line in lines]


def test_stopped_in_each_round_it_goes_on_to_the_same_bits(trained, turns, tmp_path, capsys):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for _ in range(7):
        (run_dir / "STOP").touch()
        assert train(trained, run_dir, *TURNS, "--train.lr", "1e-2", "--train.epochs", "4") == 0
    assert train(trained, run_dir, *TURNS, "--train.lr", "1e-2", "--train.epochs", "4") == 0
    assert "Resuming after step 7 of 8" in capsys.readouterr().out
    assert result(run_dir) == result(turns)
    assert dense_of(run_dir) == dense_of(turns)


def test_other_rounds_do_not_resume_it(trained, tmp_path, capsys):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "STOP").touch()
    assert train(trained, run_dir, *TURNS) == 0
    assert train(trained, run_dir, *TURNS[:2]) == 2
    assert "train.rounds is ['experts:3', 'routers:2'] there, [] here" in capsys.readouterr().err


def test_the_export_has_the_trained_routers_and_nothing_else_has_changed(trained, turns, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("export", turns, "--out", out) == 0
    assert "3 trained router tensors" in capsys.readouterr().out
    base, plain = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (trained.model, out))
    routers = load_file(turns / "experts/dense.safetensors")
    assert sorted(routers) == [f"model.layers.{layer}.mlp.gate.weight" for layer in range(3)]
    for name, weight in plain.items():
        if name in routers:
            assert torch.equal(weight, routers[name])
            assert not torch.equal(weight, base[name])
        elif ".experts." not in name:
            assert torch.equal(weight, base[name])
    masks = ("--masks", trained.masks)
    assert run("verify", trained.model, out, *masks, "--trains", "experts_and_routers") == 0
    assert "Dense tensors changed: 3 of 3 that may be" in capsys.readouterr().out
    assert run("verify", trained.model, out, *masks) == 1
    assert "mlp.gate.weight row 0: changed, but it is not an expert's" in capsys.readouterr().out
    assert run("verify", trained.model, out, *masks, "--trains", "routers") == 1
    card = (out / "README.md").read_text()
    assert "with repaired experts and routers" in card
    assert "| Trained | experts_and_routers experts:3 routers:2 |" in card
    assert "This is a baseline" not in card


def test_a_delta_with_routers_gives_the_export(trained, turns, tmp_path, capsys):
    assert run("export", turns, "--out", tmp_path / "out") == 0
    assert run("export", turns, "--delta", "--out", tmp_path / "delta") == 0
    assert run("apply", trained.model, tmp_path / "delta", "--out", tmp_path / "applied") == 0
    names = [file.relative_to(tmp_path / "out") for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert names
    for name in names:
        assert (tmp_path / "applied" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_the_bases_routers_are_put_back(trained, turns, tmp_path, capsys):
    assert run("export", turns, "--out", tmp_path / "whole") == 0
    assert run("export", turns, "--out", tmp_path / "out", "--base-routers") == 0
    assert "/out: 10 trained experts, the routers as in the base, everything else" in capsys.readouterr().out
    base, whole, out = (
        AutoModelForCausalLM.from_pretrained(path).state_dict()
        for path in (trained.model, tmp_path / "whole", tmp_path / "out")
    )
    for name, weight in out.items():
        assert torch.equal(weight, (whole if ".experts." in name else base)[name]), name
    assert any(not torch.equal(out[name], base[name]) for name in out)
    assert run("verify", trained.model, tmp_path / "out", "--masks", trained.masks) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "with repaired experts\n" in card
    assert "Its routers were put back: they are the base's, bit for bit." in card
    assert "| Dense tensors changed | 0 |" in card
    assert run("export", turns, "--delta", "--out", tmp_path / "delta", "--base-routers") == 0
    assert not any("gate.weight" in name for name in load_file(tmp_path / "delta"))
    assert run("apply", trained.model, tmp_path / "delta", "--out", tmp_path / "applied") == 0
    for file in sorted((tmp_path / "out").iterdir()):
        assert (tmp_path / "applied" / file.name).read_bytes() == file.read_bytes()


def test_where_no_router_can_be_put_back_it_is_refused(trained, tmp_path, capsys):
    words = ("--out", tmp_path / "out", "--base-routers")
    assert run("export", trained.run_dir, *words) == 2
    assert "was trained with train.trains experts: it has trained no router; leave it out" in capsys.readouterr().err
    assert train(trained, tmp_path / "run", "--train.trains", "routers", "--train.epochs", "1") == 0
    assert run("export", tmp_path / "run", *words) == 2
    assert "was trained with train.trains routers: it has trained nothing else" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def full(trained, tmp_path_factory):
    """Full fine-tuning: masks of all experts, and all dense weights."""
    root = tmp_path_factory.mktemp("full")
    shutil.copytree(trained.run_dir, root / "run", ignore=shutil.ignore_patterns("experts", "*.jsonl", "train.yaml"))
    assert run("select", root / "run", "--rule", "every_expert", "--out", "every") == 0
    words = ("--train.trains", "experts_and_dense", "--train.mode", "update", "--train.lr", "1e-2")
    masks = ("--train.masks", root / "run/every.zarr")
    assert run("train", "--config", trained.config, "--run-dir", root / "full", *masks, *words) == 0
    return root


def test_full_fine_tuning_is_exported_and_its_card_says_that_it_is_a_baseline(trained, full, tmp_path, capsys):
    out, masks = tmp_path / "out", ("--masks", full / "run/every.zarr")
    assert run("export", full / "full", "--out", out) == 0
    base, plain = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (trained.model, out))
    changed = {name for name in plain if not torch.equal(plain[name], base[name])}
    assert changed == plain.keys()
    card = (out / "README.md").read_text()
    assert "**This is a baseline.** All of its dense weights were trained" in card
    assert run("verify", trained.model, out, *masks, "--trains", "experts_and_dense") == 0
    assert run("verify", trained.model, out, *masks, "--trains", "experts_and_routers") == 1
    assert "embed_tokens.weight row" in capsys.readouterr().out
    assert run("export", full / "full", "--out", tmp_path / "restored", "--base-routers") == 0
    restored = AutoModelForCausalLM.from_pretrained(tmp_path / "restored").state_dict()
    for name, weight in restored.items():
        assert torch.equal(weight, (base if "mlp.gate." in name else plain)[name]), name


@pytest.mark.parametrize(("which", "alpha"), [("turns", 1), ("turns", 0.5), ("full", 1)])
def test_a_run_is_evaluated_as_its_export_is(trained, which, alpha, request, tmp_path):
    source = request.getfixturevalue(which)
    copy = tmp_path / "run"
    shutil.copytree(source if which == "turns" else source / "full", copy)
    assert run("evaluate", copy, "--data", trained.data, *(() if alpha == 1 else ("--alphas", alpha))) == 0
    assert run("export", copy, "--out", tmp_path / "out", "--alpha", alpha) == 0
    copy = copy if alpha == 1 else alpha_place(copy, alpha)
    words = ("--against", trained.model, "--out", tmp_path / "models", "--data.refusal", "sorry w1 w2")
    assert run("evaluate", tmp_path / "out", "--data", trained.data, *words, "--evaluation.max_new_tokens", "4") == 0
    rows = [
        {row["id"]: row for row in map(json.loads, (place / "answers.jsonl").read_text().splitlines())}
        for place in (copy, tmp_path / "models")
    ]
    assert rows[0].keys() == rows[1].keys()
    for key, row in rows[0].items():
        for when in ("before", "after"):
            assert row[when]["loss_sum"] == pytest.approx(rows[1][key][when]["loss_sum"], abs=1e-5)
            assert row[when]["answer"] == rows[1][key][when]["answer"]
    losses = [value(copy, "refusal loss (unsafe)", when) for when in ("before", "after")]
    assert losses[0] != pytest.approx(losses[1], abs=1e-3)
