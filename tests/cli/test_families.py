"""The whole path, as typed, for families that differ in routing, layout and names on disk."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_moe.cli.main import main
from dist_moe.conformance.sizes import FAMILY_CONFIGS, build
from dist_moe.store.read import MaskStore
from tests.checkpoint import prompt_rows, save_tokenizer, write_config, write_jsonl

FAMILIES = ("qwen3_moe", "olmoe", "mixtral", "deepseek_v3", "gpt_oss", "granitemoe", "phimoe", "llama4_text")


@pytest.mark.parametrize("family", FAMILIES)
def test_analyze_train_export_reload_verify(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, out, run = tmp_path / "base", tmp_path / "out", tmp_path / "run"
    build(family).save_pretrained(base, max_shard_size="100KB")
    save_tokenizer(base)
    config = str(write_config(tmp_path / "run.yaml", base, write_jsonl(tmp_path / "rows.jsonl", prompt_rows()), run))
    assert main(["analyze", "--config", config]) == 0
    assert main(["train", "--config", config]) == 0
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 4
    assert main(["export", str(run), "--out", str(out)]) == 0
    assert main(["verify", str(base), str(out), "--masks", str(run / "masks.zarr")]) == 0
    assert "Verified: every bit outside the union's experts is the base's" in capsys.readouterr().out
    before, after = (AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for path in (base, out))
    changed = [
        n
        for (n, a), b in zip(before.state_dict().items(), after.state_dict().values(), strict=True)
        if not torch.equal(a, b)
    ]
    assert changed
    assert all("expert" in name and "shared" not in name for name in changed)
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        assert after(input_ids=ids).logits.isfinite().all()
        assert not torch.equal(after(input_ids=ids).logits, before(input_ids=ids).logits)
    union = MaskStore.open(run / "masks.zarr").union()
    assert 0 < np.count_nonzero(union) < union.size
    assert max(step["num_stepped"] for step in steps) > 0


def test_inspect_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build("deepseek_v3").save_pretrained(tmp_path)
    assert main(["inspect-model", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "experts            8" in lines
    assert "experts per token  4" in lines
    assert "shared experts     yes" in lines
    assert main(["inspect-model", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model_type"] == "deepseek_v3"


def test_families_as_json_is_nothing_but_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "olmoe", "deepseek_v4", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    names = ("tap", "route", "update", "train", "load", "export", "verify", "padding", "packing")
    assert first == {"model_type": "olmoe", **dict.fromkeys(names, True), "note": ""}
    assert [name for name in names if not second[name]] == ["route", "packing"]
    assert "hash-routed" in second["note"]


def test_families_refuses_an_unknown_type_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families", "llama"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("dist-moe: error: 'llama' is no MoE causal language model type")
    assert "did you mean llama4?" in err
    assert "llama" not in FAMILY_CONFIGS
