"""The commands as a person types them, on a tiny model, from prompts to an evaluated export."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_moe.cli.main import main
from dist_moe.config.load import load_config
from dist_moe.stats.masks import mask_hash
from dist_moe.store.read import MaskStore
from dist_moe.weights.directory import read_tensors
from tests.cli.conftest import new_run
from tests.evaluations import value
from tests.tiny import FAMILIES, token_ids


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_every_step_has_the_hash_of_its_batchs_own_mask(trained):
    store, lines = MaskStore.open(trained.masks), metrics(trained.run_dir)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for epoch in (0, 1):
        assert sorted(line["batch"] for line in lines if line["epoch"] == epoch) == [0, 1]
    for line in lines:
        assert line["batch_id"] == store.batch_ids[line["batch"]]
        assert line["mask_hash"] == mask_hash(store.masks[line["batch"]])
    assert len({line["mask_hash"] for line in lines}) == 2


def test_resolved_configuration_is_in_the_run_directory(trained):
    assert "lr: 0.001" in (trained.run_dir / "train.yaml").read_text()
    assert (trained.run_dir / "analyze.yaml").is_file()


@pytest.mark.parametrize("family", FAMILIES)
def test_export_loads_in_transformers_and_differs_in_the_union_only(family, tmp_path, capsys):
    run = new_run(tmp_path, family)
    for command in ("analyze", "train"):
        assert main([command, "--config", str(run.config), "--train.mode", "update"]) == 0
    out = tmp_path / "out"
    assert main(["export", str(run.run_dir), "--out", str(out)]) == 0
    union = MaskStore.open(run.masks).union()
    base, new = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (run.model, out))
    layer = -1
    changed = 0
    for name, weight in base.named_parameters():
        after = new.get_parameter(name)
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            assert torch.equal(weight, after), name
            continue
        layer += name.endswith("gate_up_proj")
        for expert in range(len(weight)):
            same = torch.equal(weight[expert], after[expert])
            assert same or union[layer, expert], f"{name} {expert}"
            changed += not same
    assert changed > 0
    capsys.readouterr()
    assert main(["verify", str(run.model), str(out), "--masks", str(run.masks)]) == 0
    assert "Verified" in capsys.readouterr().out


def test_exported_logits_are_those_of_the_trained_run(trained, tmp_path):
    from dist_moe.config.schema import ModelConfig
    from dist_moe.model.model import load_model
    from dist_moe.parallel.comm import SoloComm
    from dist_moe.training.save import load_experts
    from dist_moe.weights.trained import TrainedExperts

    assert main(["export", str(trained.run_dir), "--out", str(tmp_path / "out")]) == 0
    model = load_model(ModelConfig(path=trained.model), SoloComm(torch.device("cpu")))
    load_experts(TrainedExperts.open(trained.run_dir / "experts"), model.layers)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = token_ids(3)
    with torch.no_grad():
        ours, theirs = model.module(input_ids=ids).logits, exported(input_ids=ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("target", ["dense", "expert"])
def test_verify_finds_one_flipped_bit_outside_the_union(trained, tmp_path, capsys, target):
    out = tmp_path / "out"
    assert main(["export", str(trained.run_dir), "--out", str(out)]) == 0
    union = MaskStore.open(trained.masks).union()
    layer, expert = np.argwhere(~union)[0]
    names = {"dense": "model.layers.0.self_attn.q_proj.weight",
             "expert": f"model.layers.{layer}.mlp.experts.{expert}.up_proj.weight"}  # fmt: skip
    stored = read_tensors(out)[names[target]]
    data = np.memmap(stored.file, np.uint8, "r+", offset=stored.start, shape=(1,))
    data[0] ^= 1
    data.flush()
    capsys.readouterr()
    assert main(["verify", str(trained.model), str(out), "--masks", str(trained.masks)]) == 1
    assert f"VIOLATION {names[target]}" in capsys.readouterr().out


def test_verify_finds_a_lost_and_a_foreign_tensor(trained, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    out = tmp_path / "out"
    assert main(["export", str(trained.run_dir), "--out", str(out)]) == 0
    file = min(out.glob("*.safetensors"))
    tensors = load_file(file)
    lost = min(tensors)
    tensors["foreign"] = tensors.pop(lost)
    save_file(tensors, file)
    capsys.readouterr()
    assert main(["verify", str(trained.model), str(out), "--masks", str(trained.masks)]) == 1
    printed = capsys.readouterr().out
    assert f"VIOLATION {lost}: in the base" in printed
    assert "VIOLATION foreign: in " in printed


def test_evaluation_equals_plain_transformers(trained, tmp_path, capsys):
    run_dir = tmp_path / "run"
    shutil.copytree(trained.run_dir, run_dir)
    assert main(["export", str(run_dir), "--out", str(tmp_path / "out")]) == 0
    assert main(["evaluate", str(run_dir)]) == 0
    said = capsys.readouterr().out
    assert "refusal loss (unsafe)" in said
    assert "Trained: these are the rows of the training itself, not held out" in said
    assert "32 different prompts" in said
    rows = [json.loads(line) for line in trained.data.read_text().splitlines()]
    unsafe = [{**row, "response": "sorry w1 w2"} for row in rows if row["label"] == "unsafe"]
    safe = [row for row in rows if row["label"] == "safe"]
    for when, path in (("before", trained.model), ("after", tmp_path / "out")):
        for measure, arm in (("refusal loss (unsafe)", unsafe), ("answer loss (safe)", safe)):
            expected = plain_loss(path, arm)
            assert value(run_dir, measure, when) == pytest.approx(expected, abs=1e-5)


def plain_loss(path: Path, rows: list[dict]) -> float:
    """Row by row, unpadded, with transformers' own loss."""
    from transformers import AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    total = number = 0
    for row in rows:
        prompt = tokenizer(f"<user>{row['prompt']}<end><assistant>", add_special_tokens=False).input_ids
        answer = tokenizer(f"{row['response']}<end>", add_special_tokens=False).input_ids
        ids = torch.tensor([prompt + answer])
        labels = torch.tensor([[-100] * len(prompt) + answer])
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.item() * len(answer)
        number += len(answer)
    return total / number


def test_training_in_a_new_directory_from_masks_elsewhere(trained, tmp_path):
    run_dir = tmp_path / "deep" / "run"
    arguments = ["--run-dir", str(run_dir), "--train.masks", str(trained.masks), "--train.mode", "update"]
    assert main(["train", "--config", str(trained.config), *arguments]) == 0
    assert len(metrics(run_dir)) == 4
    assert main(["export", str(run_dir), "--out", str(tmp_path / "out")]) == 0


def test_overwrite_replaces_an_earlier_run(trained, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(trained.run_dir, run_dir)
    arguments = ["--config", str(trained.config), "--run-dir", str(run_dir), "--overwrite", "--train.epochs", "1"]
    assert main(["analyze", *arguments]) == 0
    assert main(["train", *arguments]) == 0
    assert len(metrics(run_dir)) == 2


def test_analysis_of_the_models_own_answers(fresh, capsys):
    arguments = ["--analysis.tokens", "generated", "--analysis.max_new_tokens", "5", "--analysis.threshold", "0.001"]
    assert main(["analyze", "--config", str(fresh.config), *arguments]) == 0
    store = MaskStore.open(fresh.masks)
    assert store.counted_tokens == "generated"
    assert store.provenance["max_new_tokens"] == 5
    assert store.provenance["temperature"] == 0
    assert set(store.counts.prompts["tokens"]) <= {1, 2, 3, 4}


@pytest.mark.parametrize("protocol", ["memory", "file"])
def test_masks_behind_a_url(trained, protocol, tmp_path, capsys):
    """Copied there, trained from there and verified with: as from the run directory."""
    url = f"memory://masks-of-{tmp_path.name}/masks.zarr" if protocol == "memory" else f"file://{tmp_path}/m.zarr"
    assert main(["store", "copy", str(trained.masks), url]) == 0
    run_dir = tmp_path / "run"
    arguments = ["--config", str(trained.config), "--run-dir", str(run_dir)]
    assert main(["train", *arguments, "--train.masks", url]) == 0
    assert load_config(run_dir / "train.yaml").train.masks == url
    assert [(line["batch_id"], line["mask_hash"], line["loss"]) for line in metrics(run_dir)] == [
        (line["batch_id"], line["mask_hash"], line["loss"]) for line in metrics(trained.run_dir)
    ]
    assert main(["export", str(run_dir), "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    assert main(["verify", str(trained.model), str(tmp_path / "out"), "--masks", url]) == 0
    assert "Verified" in capsys.readouterr().out
    assert main(["verify", str(trained.model), str(tmp_path / "out"), "--masks", f"{url}.not"]) == 2
    assert f"no mask store at {url}.not" in capsys.readouterr().err
