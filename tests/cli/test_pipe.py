"""`dist-moe ... | head`: a command that prints ends without a word when its reader has gone, through a real pipe."""

import subprocess
import sys
from pathlib import Path

import pytest

from dist_moe.cli.main import PRINTING_COMMANDS, main
from dist_moe.store import write_store
from tests.unit.store.example import tiled_contents
from tests.unit.store.pickles.examples import analysis, write_pickle

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def commands(trained, tmp_path_factory):
    """What each printing command is tried with."""
    root = tmp_path_factory.mktemp("pipe")
    run_dir = root / "run"
    run_dir.mkdir()
    (run_dir / "STOP").touch()
    settings = ["--config", str(trained.config), "--train.masks", str(trained.masks), "--run-dir", str(run_dir)]
    assert main(["train", *settings]) == 0
    return {
        "checkpoint": ["show", run_dir],
        "store": ["check", trained.masks],
        "import": [write_pickle(root / "sft_dataset_x.pkl", analysis())],
        "inspect-model": [trained.model],
        "families": ["doge"],
    }


def without_reader(*command):
    """Status and stderr of a process whose stdout is a pipe that nobody reads."""
    words = [sys.executable, *map(str, command)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        process.stdout.close()
        err = process.stderr.read()
        return process.wait(timeout=200), err


@pytest.mark.parametrize("name", PRINTING_COMMANDS)
def test_a_command_that_prints_ends_without_a_word(commands, name):
    status, err = without_reader("-m", "dist_moe.cli.main", name, *commands[name])
    assert (status, err) == (141, "")


def test_a_users_error_is_still_told(commands):
    status, err = without_reader("-m", "dist_moe.cli.main", "store", "check", "nowhere.zarr")
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("dist-moe: error: no mask store at nowhere.zarr")


def test_the_inspection_tool_too(trained):
    assert without_reader("tools/inspect_masks.py", trained.masks) == (141, "")


def test_head_gets_its_lines(tmp_path):
    """More output than a pipe holds: the command is still writing when `head` has left."""
    write_store(tmp_path / "masks.zarr", *tiled_contents(700))
    line = f"set -o pipefail; {sys.executable} tools/inspect_masks.py --json {tmp_path}/masks.zarr | head -n 2"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, timeout=200, cwd=REPOSITORY
    )
    assert (done.returncode, done.stderr, done.stdout) == (141, "", '{\n  "facts": {\n')


def test_commands_that_do_more_than_print_say_what_happened(trained, tmp_path):
    """A training whose output is lost does not end as if all were well, nor without a word."""
    settings = ["--config", trained.config, "--run-dir", tmp_path / "run"]
    status, err = without_reader("-m", "dist_moe.cli.main", "analyze", *settings)
    assert status not in (0, 141)
    assert "BrokenPipeError" in err
