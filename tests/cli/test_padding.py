"""A model whose rows must run alone: every command computes what plain transformers computes for each row alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from dist_moe.cli.main import main
from dist_moe.config.load import load_config
from dist_moe.evaluation import score
from dist_moe.measure import parts
from dist_moe.parallel.comm import SoloComm
from dist_moe.store import MaskStore
from dist_moe.training import split
from dist_moe.workflows.inputs import read_inputs
from tests.checkpoint import prompt_rows, save_checkpoint, write_config, write_jsonl
from tests.cli.conftest import Run, new_run
from tests.evaluations import value
from tests.plain import response_loss, routed

NOTE = "One row a forward pass: in a padded row the sparse attention of 'deepseek_v32' chooses other tokens"
FAST = ["--analysis.tokens", "prompt", "--analysis.statistics.permutations", "0"]


def plain_model(run: Run) -> torch.nn.Module:
    """In float32, whatever the checkpoint is in."""
    model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    model.set_experts_implementation("eager")
    return model.eval()


def batches(run: Run):  # type: ignore[no-untyped-def]
    """The rows of each batch, and the inputs that they come from."""
    inputs = read_inputs(load_config(run.config), SoloComm(torch.device("cpu")))
    return [inputs.rows(batch) for batch in range(len(inputs.batches))], inputs


def expected_counts(run: Run, plain) -> np.ndarray:  # type: ignore[no-untyped-def]
    """[P, L, E]: of the prompt's tokens, with the response behind them."""
    rows = [row for batch in batches(run)[0] for row in batch]
    return np.array([routed(plain, r.prompt_ids + r.response_ids)[: len(r.prompt_ids)].sum(0) for r in rows])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):  # type: ignore[no-untyped-def]
    return new_run(tmp_path_factory.mktemp("alone"), "deepseek_v32")


def test_inspect_model_says_that_rows_run_alone(alone, capsys):  # type: ignore[no-untyped-def]
    assert main(["inspect-model", str(alone.model)]) == 0
    assert "rows per pass      1, as its sparse attention depends on padding" in capsys.readouterr().out


def test_with_padding_every_command_computes_what_rows_alone_give(alone, capsys):  # type: ignore[no-untyped-def]
    plain, (dealt, _) = plain_model(alone), batches(alone)
    assert main(["analyze", "--config", str(alone.config), *FAST]) == 0
    assert NOTE in capsys.readouterr().out
    store = MaskStore.open(alone.masks)
    assert (store.counts.prompt_counts[:] == expected_counts(alone, plain)).all()
    facts = ("dtype", "micro_batch_tokens", "rows_alone")
    assert [store.provenance[name] for name in facts] == ["float32", 8192, True]

    assert main(["train", "--config", str(alone.config), "--train.mode", "update"]) == 0
    assert NOTE in capsys.readouterr().out
    first = json.loads((alone.run_dir / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(response_loss(plain, dealt[first["batch"]]), abs=1e-6)

    assert main(["evaluate", str(alone.run_dir)]) == 0
    assert NOTE in capsys.readouterr().out
    unsafe = [row for batch in dealt for row in batch if row.unsafe]
    before = value(alone.run_dir, "refusal loss (unsafe)", "before")
    assert before == pytest.approx(response_loss(plain, unsafe), abs=1e-6)


# A bfloat16 checkpoint, counted in float32


@pytest.fixture(scope="module")
def in_bfloat16(tmp_path_factory):  # type: ignore[no-untyped-def]
    root = tmp_path_factory.mktemp("bfloat16")
    model = save_checkpoint(root / "model", "qwen3_moe", torch.bfloat16)
    rows = prompt_rows(num_safe=48, per_category=24)
    for number, row in enumerate(rows):  # of many lengths
        row["prompt"] += f" w{number}" * (number % 17)
    config = write_config(root / "run.yaml", model, write_jsonl(root / "prompts.jsonl", rows), root / "run")
    return Run(root, model, root / "prompts.jsonl", config, root / "run")


def counts(run: Run, tokens: int, *arguments: str) -> MaskStore:
    """Of one way to pad."""
    given = ["--analysis.micro_batch_tokens", str(tokens), "--overwrite", *FAST, *arguments]
    assert main(["analyze", "--config", str(run.config), *given]) == 0
    return MaskStore.open(run.masks)


def test_in_float32_padding_changes_no_count_of_a_bfloat16_checkpoint(in_bfloat16):  # type: ignore[no-untyped-def]
    plain = plain_model(in_bfloat16)
    expected = expected_counts(in_bfloat16, plain)
    for tokens in (1, 100, 8192):
        store = counts(in_bfloat16, tokens, "--analysis.dtype", "float32")
        assert (store.counts.prompt_counts[:] == expected).all()
        assert (store.provenance["dtype"], store.provenance["micro_batch_tokens"]) == ("float32", tokens)
    as_stored = counts(in_bfloat16, 8192)
    assert as_stored.provenance["dtype"] == "bfloat16"
    assert (as_stored.counts.prompt_counts[:] != expected).any(), "bfloat16 rounds as float32 does: nothing was tested"


def test_packed_rows_have_the_counts_and_the_loss_of_rows_alone(in_bfloat16, monkeypatch):  # type: ignore[no-untyped-def]
    plain, packed = plain_model(in_bfloat16), ["--analysis.dtype", "float32", "--data.packing"]
    store = counts(in_bfloat16, 300, *packed)
    assert (store.counts.prompt_counts[:] == expected_counts(in_bfloat16, plain)).all()
    assert store.provenance["packed"]
    made, collated = [], split.collate
    monkeypatch.setattr(split, "collate", lambda *args, **kw: made.append(collated(*args, **kw)) or made[-1])
    words = [
        "--config",
        str(in_bfloat16.config),
        "--model.dtype",
        "float32",
        "--train.mode",
        "update",
        "--data.packing",
    ]
    assert main(["train", *words, "--overwrite"]) == 0
    assert all(batch.input_ids.shape == (1, batch.num_live) for batch in made)
    first = json.loads((in_bfloat16.run_dir / "metrics.jsonl").read_text().splitlines()[0])
    dealt = batches(in_bfloat16)[0]
    assert first["loss"] == pytest.approx(response_loss(plain, dealt[first["batch"]]), abs=1e-5)

    del made[:]
    monkeypatch.setattr(score, "collate", split.collate)
    assert main(["evaluate", str(in_bfloat16.run_dir)]) == 0
    assert made
    assert all(batch.input_ids.shape == (1, batch.num_live) for batch in made)
    before = value(in_bfloat16.run_dir, "refusal loss (unsafe)", "before")
    unsafe = [row for batch in dealt for row in batch if row.unsafe]
    assert before == pytest.approx(response_loss(plain, unsafe), abs=1e-5)


def test_in_float32_no_part_is_taken_that_padding_and_bfloat16_have_rounded(  # type: ignore[no-untyped-def]
    in_bfloat16, monkeypatch, capsys
):
    monkeypatch.setattr(parts, "ROWS_AT_ONCE", 16)
    assert main(["analyze", "--config", str(in_bfloat16.config), "--overwrite", *FAST, "--analysis.part", "1/2"]) == 0
    assert "parts are left to other jobs" in capsys.readouterr().out
    store = counts(in_bfloat16, 8192, "--analysis.dtype", "float32")
    assert (store.counts.prompt_counts[:] == expected_counts(in_bfloat16, plain_model(in_bfloat16))).all()
