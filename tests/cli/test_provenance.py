"""A run goes on on another engine and another number of ranks, and only with what it was begun with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dist_moe.cli.main import main
from dist_moe.errors import UserError
from dist_moe.training.checkpoint_index import last_checkpoint
from tests.cli.test_launch import assert_same_training
from tools.soak.__main__ import SINGLE_THREADED

REPOSITORY = Path(__file__).resolve().parents[2]

STARTS = """
import sys
from pathlib import Path
from tools.soak.processes import prepare, start

config, run_dir, *arguments = sys.argv[1:]
prepare(Path(config), {"deepspeed"})
for engine in ("deepspeed", "fsdp"):
    Path(run_dir, "STOP").touch()
    log = Path(run_dir).with_name(f"{engine}.log")
    statuses = start(engine, 2, ["--config", config, "--run-dir", run_dir, *arguments], log).statuses()
    assert statuses == [0, 0], log.read_text()
"""


@pytest.mark.long
@pytest.mark.timeout(500)
def test_deepspeed_then_fsdp_then_one_process(trained, tmp_path, capsys):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    masks = ["--train.masks", str(trained.masks)]
    command = [sys.executable, "-c", STARTS, str(trained.config), str(run_dir), *masks]
    environment = {"PATH": "", **SINGLE_THREADED}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Stopped after step 1 of 4" in (tmp_path / "deepspeed.log").read_text()
    assert "Resuming after step 1 of 4" in (tmp_path / "fsdp.log").read_text()
    assert main(["train", "--config", str(trained.config), "--run-dir", str(run_dir), *masks]) == 0
    assert "Resuming after step 2 of 4" in capsys.readouterr().out
    assert_same_training(trained.run_dir, run_dir)


@pytest.fixture(scope="module")
def stopped(trained, tmp_path_factory):
    """Arguments of a run that was stopped after its first step."""
    run_dir = tmp_path_factory.mktemp("stopped") / "run"
    run_dir.mkdir()
    (run_dir / "STOP").touch()
    arguments = ["train", "--config", str(trained.config), "--run-dir", str(run_dir)]
    arguments += ["--train.masks", str(trained.masks)]
    assert main(arguments) == 0
    return run_dir, arguments


def test_every_fact_must_be_the_same_and_both_values_are_named(stopped):
    run_dir, _ = stopped
    root = run_dir / "checkpoints"
    facts = json.loads((root / "step-00000001" / "index.json").read_text())["facts"]
    hashes = ("model_hash", "tokenizer_hash", "data_hash", "batches_hash", "masks_digest")
    settings = ("seed", "model.dtype", "data.max_length", "train.lr", "train.mode", "train.fill", "train.epochs")
    assert facts.keys() >= {*hashes, *settings}
    assert last_checkpoint(root, facts).step == 1
    for key, there in facts.items():
        with pytest.raises(UserError) as error:
            last_checkpoint(root, {**facts, key: "other"})
        assert f"{key} is {there} there, other here" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--data.max-length", "64"), "data.max_length is 1024 there, 64 here"),
        (("--model.dtype", "bfloat16"), "model.dtype is auto there, bfloat16 here"),
        (("--train.epochs", "3"), "train.epochs is 2 there, 3 here"),
    ],
)
def test_a_setting_that_changes_what_is_computed_is_refused(stopped, capsys, change, message):
    _, arguments = stopped
    assert main([*arguments, *change]) == 2
    assert message in capsys.readouterr().err
