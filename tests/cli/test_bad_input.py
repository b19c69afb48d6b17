"""What does not go together: one clear line, status 2, nothing written. What is bad by itself: tests/bad_inputs."""

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
    assert all(name.startswith(("run/analysis/", "run/logs/", "run/rows.safetensors")) for name in new)
    return errors[0]


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


def test_a_dense_model(fresh, capsys):
    shutil.rmtree(fresh.model)
    save_dense_checkpoint(fresh.model)
    line = refused(capsys, fresh.root, "analyze", "--config", fresh.config)
    assert "llama" in line
    assert "no mixture-of-experts layer" in line


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


@pytest.mark.parametrize(("command", "what"), [("analyze", "masks.zarr"), ("train", "experts")])
def test_results_of_an_earlier_run_are_kept(trained, capsys, command, what):
    line = refused(capsys, trained.root, command, "--config", trained.config)
    assert f"{what} exists" in line
    assert "overwrite" in line


def test_export_from_a_base_that_has_changed(fresh, capsys):
    for command in ("analyze", "train"):
        assert main([command, "--config", str(fresh.config)]) == 0
    file = min(fresh.model.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    line = refused(capsys, fresh.root, "export", fresh.run_dir, "--out", fresh.root / "out")
    assert "is not the model" in line


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
