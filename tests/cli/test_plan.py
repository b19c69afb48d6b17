"""`dist-moe plan` as a person types it: without torch, from a configuration, a model's shapes and masks."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dist_moe.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "deepspeed")


def printed(capsys, *words):
    assert main(["plan", *map(str, words)]) == 0
    return capsys.readouterr().out


def as_json(capsys, *words):
    return json.loads(printed(capsys, *words, "--json"))


def test_known_models_are_planned_without_torch():
    code = (
        "import sys; from dist_moe.cli.main import main; "
        "main(['plan', '--model', 'deepseek-v3', '--nodes', '2', '--gpus-per-node', '8', '--gpu', '141GB']); "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "Plan: train DeepSeek-V3 on 2 nodes of 8 GPUs"
    assert lines[-1] == "[]"


def test_a_plan_ends_with_a_command_for_slurm_that_has_the_changes(capsys, tmp_path):
    config = ROOT / "examples/qwen3-30b-a3b.yaml"
    lines = printed(
        capsys, "--config", config, "--model", "qwen3-30b-a3b", "--gpus-per-node", 8, "--gpu", "40", "--union", "10%"
    ).splitlines()
    words = lines[-1].split()
    assert words[:8] == ["dist-moe", "slurm", "submit", "--config", str(config), "--site", "site.yaml", "--stages"]
    assert words[8:14] == ["count", "select", "train", "--resources", "nodes=1", "gpus_per_node=8"]
    assert [word.partition("=")[0] for word in words[14:16]] == ["count.mem", "train.mem"]
    (row,) = (line for line in lines if line.startswith("  40 GB"))
    assert len(words) > 16
    for word in words[16:]:
        assert word in row
    site = tmp_path / "site.yaml"
    site.write_text("partition: gpu")
    given = ["preview" if word == "submit" else str(site) if word == "site.yaml" else word for word in words[2:]]
    assert main(["slurm", *given]) == 0  # it is a command
    text = capsys.readouterr().out
    assert [text.count(f"#SBATCH --{each.partition('.')[2]}\n") for each in words[14:16]] == [1, 1]
    assert text.count("#SBATCH --gpus-per-node=8") == 2


def test_what_a_small_model_takes_is_not_told_as_nothing(trained, capsys):
    words = ("--config", trained.config, "--train.masks", trained.masks, "--tokens-per-second", "1000")
    found, lines = as_json(capsys, *words), printed(capsys, *words).splitlines()
    (weights,) = (line.split()[1] for line in lines if line.startswith("  weights"))
    assert float(weights) == pytest.approx(found["memory"]["weights"] / 1e9, rel=0.5)
    assert float(weights) > 0
    (parameters,) = (re.findall(r"([\d.]+) million parameters", line)[0] for line in lines if line.startswith("Model:"))
    assert float(parameters) == pytest.approx(found["outline"]["num_parameters"] / 1e6, abs=0.06)
    assert "0.0 GB" not in "".join(lines)
    assert f"; {found['seconds'] / 60:.1f} minutes for" in "".join(lines)


def test_settings_on_the_command_line_count(capsys):
    def activations(*words):
        return as_json(capsys, "--model", "olmoe-1b-7b", *words)["memory"]["activations"]

    assert activations("--train.micro_batch_size", "1") < activations()
    assert activations("--train.activation_checkpointing") < activations()
    assert activations("--row-tokens", "128") < activations()
    assert activations("--answer-tokens", "16") < activations()


def test_packed_rows_need_room_for_their_mask(capsys):
    words = ["--model", "qwen3-30b-a3b", "--gpu", "141GB", "--data.max_length", "2048"]
    padded, packed = (as_json(capsys, *words, *more)["memory"] for more in ([], ["--data.packing"]))
    rows = 16 * 2048
    assert packed["activations"] - padded["activations"] >= rows**2 * (1 + 2 * 47)  # in 48 layers but the first
    kernels = ["--data.packing", "--model.attention", "flash_attention_2"]
    assert as_json(capsys, *words, *kernels)["memory"] == padded


def test_masks_of_the_run_say_how_many_experts_are_trained(trained, capsys):
    from dist_moe.store import MaskStore

    masks = MaskStore.open(trained.masks)
    found = as_json(capsys, "--config", trained.config, "--train.masks", trained.masks, "--tokens-per-second", "1000")
    assert found["trained"] == {
        "in_all": int(masks.union().sum()),
        "in_batch": max(batch.num_unsafe_experts for batch in masks.batches),
    }
    assert found["job"]["num_batches"] == len(masks.batches)
    assert found["seconds"] > 0
    assert found["outline"]["num_experts"] == masks.masks.shape[2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model", "deepseek-v4000"), "'deepseek-v4000' is no model: expected a directory with config.json"),
        ((), "neither --config nor --model is given"),
        (("--model", "kimi-k2", "--gpu", "big"), "expected a number of GB, such as 80GB, got 'big'"),
        (("--model", "kimi-k2", "--union", "0"), "expected a share above 0 and up to 100%"),
        (("--model", "kimi-k2", "--tokens-per-second", "fast"), "expected a number above 0"),
        (("--model", "kimi-k2", "--answer-tokens", "9000"), "--answer-tokens is 9000, but a row has 1024 tokens"),
        (("--model", "kimi-k2", "--gpus-per-node", "8", "--parallel.ep_size", "3"), "choose one of 1, 2, 4, 8"),
        (("--model", "kimi-k2", "--config", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_bad_input_is_one_line(words, says, capsys):
    assert main(["plan", *words]) == 2
    shown = capsys.readouterr()
    assert says in shown.err
    assert shown.err.count("\n") == 1
    assert not shown.out
