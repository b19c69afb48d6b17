"""Bad input: one clear line, status 2, no traceback, nothing written."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dist_moe.cli.main import main
from tests.checkpoint import prompt_rows, save_checkpoint, save_dense_checkpoint, write_jsonl


def files_under(path: Path) -> dict[str, int]:
    return {str(f.relative_to(path)): f.stat().st_mtime_ns for f in sorted(path.rglob("*")) if f.is_file()}


def refused(capsys, root: Path, *argv: object, counted: bool = False) -> str:
    """The one line that a refused command prints; nothing under `root` may change.

    What has been `counted` by then is kept, whole, for the next try.
    """
    before = files_under(root)
    capsys.readouterr()
    assert main([str(a) for a in argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("dist-moe: error: ")]
    assert len(errors) == 1
    assert lines[-1] == errors[0]
    new = {name: stamp for name, stamp in files_under(root).items() if name not in before}
    assert {name: stamp for name, stamp in files_under(root).items() if name in before} == before
    assert bool(new) == counted
    assert all(name.startswith("run/analysis/") for name in new)
    return errors[0]


def rewrite(rows, **changes):
    """The rows with the second one changed; a value of None removes the key."""
    row = {**rows[1], **changes}
    return [rows[0], {k: v for k, v in row.items() if v is not None}, *rows[2:]]


DATA = {
    "neither prompt nor messages": (lambda rows: rewrite(rows, prompt=None), ["prompts.jsonl:2", "prompt", "messages"]),
    "unknown label": (lambda rows: rewrite(rows, label="bad"), ["prompts.jsonl:2", "bad", "safe", "unsafe"]),
    "no label": (lambda rows: rewrite(rows, label=None), ["prompts.jsonl:2", "label"]),
    "too few rows": (lambda rows: rows[:20], ["too few rows", "8 safe", "8 unsafe"]),
    "empty": (lambda rows: [], ["prompts.jsonl", "no row"]),
}


@pytest.mark.parametrize("what", DATA)
def test_bad_rows(fresh, capsys, what):
    change, words = DATA[what]
    write_jsonl(fresh.data, change(prompt_rows()))
    line = refused(capsys, fresh.root, "analyze", "--config", fresh.config)
    assert all(word in line for word in words), line


def test_line_that_is_no_json(fresh, capsys):
    fresh.data.write_text('{"prompt": "w1", "label": "safe"}\n{oops\n')
    assert "prompts.jsonl:2" in refused(capsys, fresh.root, "analyze", "--config", fresh.config)


def test_no_data_file(fresh, capsys):
    line = refused(capsys, fresh.root, "analyze", "--config", fresh.config, "--data.paths", "nowhere.jsonl")
    assert "nowhere.jsonl" in line


def test_an_arm_without_counted_tokens(fresh, capsys):
    rows = [{k: v for k, v in row.items() if k != "response"} for row in prompt_rows()]
    write_jsonl(fresh.data, rows)
    line = refused(capsys, fresh.root, "analyze", "--config", fresh.config, "--analysis.tokens", "completion")
    assert "batch 0 (hacking" in line
    assert "safe prompts have no counted token" in line
    assert "analysis.tokens" in line


def test_experts_that_cannot_be_shared(fresh, capsys):
    line = refused(capsys, fresh.root, "analyze", "--config", fresh.config, "--analysis.ep_size", "2")
    assert "analysis.ep_size is 2, but 1 rank(s) do not divide into replicas of 2" in line


def test_a_threshold_that_selects_nothing(fresh, capsys):
    line = refused(
        capsys, fresh.root, "analyze", "--config", fresh.config, "--analysis.threshold", "0.99", counted=True
    )
    assert "analysis.threshold = 0.99" in line
    assert "largest" in line
    assert main(["analyze", "--config", str(fresh.config)]) == 0
    assert not (fresh.run_dir / "analysis").exists()


def test_no_configuration_file(fresh, capsys):
    assert "nowhere.yaml" in refused(capsys, fresh.root, "analyze", "--config", fresh.root / "nowhere.yaml")


def test_unknown_key_names_file_and_nearest_key(fresh, capsys):
    fresh.config.write_text(fresh.config.read_text().replace("lr: 1e-3", "lrr: 1e-3"))
    line = refused(capsys, fresh.root, "train", "--config", fresh.config)
    assert "train.lrr" in line
    assert "run.yaml" in line
    assert "train.lr?" in line


MODELS = {
    "no directory": (lambda path: shutil.rmtree(path), ["no directory", "model.path"]),
    "no weights": (lambda path: [f.unlink() for f in path.glob("*.safetensors")], ["no *.safetensors"]),
    "no config": (lambda path: (path / "config.json").unlink(), ["config.json"]),
    "dense": (
        lambda path: (shutil.rmtree(path), save_dense_checkpoint(path)),
        ["llama", "no mixture-of-experts layer"],
    ),
    "no tokenizer": (lambda path: [f.unlink() for f in path.glob("tokenizer*")], ["tokenizer"]),
    "a truncated shard": (
        lambda path: cut(min(path.glob("*.safetensors"))),
        ["model-00001", "cut short"],
    ),
    "a missing shard": (lambda path: min(path.glob("*.safetensors")).unlink(), ["index.json", "model-00001"]),
}


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:-10])


@pytest.mark.parametrize("what", MODELS)
def test_bad_model(fresh, capsys, what):
    change, words = MODELS[what]
    change(fresh.model)
    line = refused(capsys, fresh.root, "analyze", "--config", fresh.config)
    assert all(word in line for word in words), line


def test_masks_of_another_model(trained, tmp_path, capsys):
    other = save_checkpoint(tmp_path / "other", seed=1)
    line = refused(
        capsys, tmp_path, "train", "--config", trained.config, "--model.path", other, "--run-dir", tmp_path / "new",
        "--train.masks", trained.masks,
    )  # fmt: skip
    assert "masks.zarr was made from other model" in line


def test_masks_of_other_data(trained, tmp_path, capsys):
    data = write_jsonl(tmp_path / "more.jsonl", [*prompt_rows(), {"prompt": "w9", "label": "safe", "response": "w1"}])
    line = refused(
        capsys, tmp_path, "train", "--config", trained.config, "--data.paths", data, "--run-dir", tmp_path / "new",
        "--train.masks", trained.masks,
    )  # fmt: skip
    assert "other data" in line


def test_masks_of_another_batch_order(trained, tmp_path, capsys):
    line = refused(
        capsys, tmp_path, "train", "--config", trained.config, "--seed", "1", "--run-dir", tmp_path / "new",
        "--train.masks", trained.masks,
    )  # fmt: skip
    assert "batch" in line


def test_no_masks_yet(fresh, capsys):
    assert "no mask store" in refused(capsys, fresh.root, "train", "--config", fresh.config)


@pytest.mark.parametrize(("command", "what"), [("analyze", "masks.zarr"), ("train", "experts")])
def test_results_of_an_earlier_run_are_kept(trained, capsys, command, what):
    line = refused(capsys, trained.root, command, "--config", trained.config)
    assert f"{what} exists" in line
    assert "overwrite" in line


def test_export_to_a_directory_that_exists(trained, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    line = refused(capsys, tmp_path, "export", trained.run_dir, "--out", tmp_path / "out")
    assert "out exists" in line


def test_export_before_training(fresh, tmp_path, capsys):
    assert main(["analyze", "--config", str(fresh.config)]) == 0
    line = refused(capsys, fresh.root, "export", fresh.run_dir, "--out", fresh.root / "out")
    assert "no finished training" in line


def test_export_from_a_base_that_has_changed(fresh, capsys):
    for command in ("analyze", "train"):
        assert main([command, "--config", str(fresh.config)]) == 0
    file = min(fresh.model.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    line = refused(capsys, fresh.root, "export", fresh.run_dir, "--out", fresh.root / "out")
    assert "is not the model" in line


def test_verify_with_a_foreign_store(trained, tmp_path, capsys):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group"}))
    line = refused(capsys, tmp_path, "verify", trained.model, trained.model, "--masks", tmp_path / "store")
    assert "is no mask store" in line


def test_deepspeed_settings_that_are_ours(fresh, capsys):
    assert main(["analyze", "--config", str(fresh.config)]) == 0
    ours = fresh.root / "ds.json"
    ours.write_text('{"gradient_clipping": 1.0}')
    line = refused(capsys, fresh.root, "train", "--config", fresh.config, "--train.deepspeed_config", ours)
    assert "gradient_clipping" in line
    assert "ds.json" in line


def test_deepspeed_engine_without_its_launcher(fresh, capsys):
    line = refused(capsys, fresh.root, "train", "--config", fresh.config, "--engine", "deepspeed")
    assert "deepspeed launch/train.py" in line


def test_the_process_ends_with_status_2_and_one_line(tmp_path):
    done = subprocess.run(
        [Path(sys.executable).with_name("dist-moe"), "analyze", "--config", tmp_path / "nowhere.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("dist-moe: error: ")
