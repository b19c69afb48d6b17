"""`dist-moe ... | head`: a command that prints ends without a word when its reader has gone, through a real pipe."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dist_moe.cli.main import main
from tests.forks import REPOSITORY, Command, run_forks
from tests.unit.store.example import tiled_contents, write_contents
from tests.unit.store.pickles.examples import analysis, write_pickle

PRINTING = ("checkpoint", "store", "import", "inspect-model", "families", "config", "verify")
WORKING = ("analyze", "train")


@pytest.fixture(scope="module")
def work(trained, tmp_path_factory):
    """A directory with a stopped run, a pickle, and a new run of `WORKING`."""
    root = tmp_path_factory.mktemp("pipe")
    (root / "stopped").mkdir()
    (root / "stopped" / "STOP").touch()
    settings = ["--config", str(trained.config), "--train.masks", str(trained.masks)]
    assert main(["train", *settings, "--run-dir", str(root / "stopped")]) == 0
    write_pickle(root / "sft_dataset_x.pkl", analysis())
    return root


@pytest.fixture(scope="module")
def ended(trained, work):
    """How each command has ended whose stdout nobody reads, and one whose stdout is full."""
    run = ["--config", trained.config, "--run-dir", work / "run"]
    words = {
        "checkpoint": ["show", work / "stopped"],
        "store": ["check", trained.masks],
        "import": [work / "sft_dataset_x.pkl"],
        "inspect-model": [trained.model],
        "families": ["doge"],
        "config": ["show", "--config", trained.config],
        "verify": [trained.model, trained.model, "--masks", trained.masks],
        "analyze": run,
        "train": run,
    }
    program = ("-m", "dist_moe.cli.main")
    commands = {name: Command([*program, name, *more]) for name, more in words.items()}
    commands["refused"] = Command([*program, "store", "check", "nowhere.zarr"])
    commands["tool"] = Command(["tools/inspect_masks.py", trained.masks])
    commands["full"] = Command([*program, "inspect-model", trained.model], Path("/dev/full"))
    return run_forks(commands, work)


@pytest.mark.parametrize("name", PRINTING)
def test_a_command_that_prints_ends_without_a_word(ended, name):
    assert ended[name] == (141, "")


def test_a_users_error_is_still_told(ended):
    status, err = ended["refused"]
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith("dist-moe: error: no mask store at nowhere.zarr")


def test_the_inspection_tool_too(ended):
    assert ended["tool"] == (141, "")


def test_head_gets_its_lines(tmp_path):
    """More output than a pipe holds: the command is still writing when `head` has left."""
    write_contents(tmp_path / "masks.zarr", tiled_contents(700))
    line = f"set -o pipefail; {sys.executable} tools/inspect_masks.py --json {tmp_path}/masks.zarr | head -n 2"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, timeout=200, cwd=REPOSITORY
    )
    assert (done.returncode, done.stderr, done.stdout) == (141, "", '{\n  "facts": {\n')


def test_commands_that_do_more_than_print_go_on(ended, work):
    """Only the console is lost: an analysis and a training come to the same end, whoever has stopped to read."""
    told = "dist-moe: the output is read no more (Broken pipe); going on without it"
    for command in WORKING:
        status, err = ended[command]
        assert status == 0
        assert "Traceback" not in err
        assert err.splitlines().count(told) == 1
    for name in ("metrics.jsonl", "experts/index.json"):
        assert (work / "run" / name).is_file()


def test_a_full_standard_output(ended):
    """What a command prints is its product: it is an error that it cannot."""
    assert ended["full"] == (2, "dist-moe: error: cannot write to standard output: No space left on device\n")


@pytest.mark.long
def test_nobody_reads_either_stream(trained, tmp_path):
    """Progress bars write to stderr."""
    command = [sys.executable, "-m", "dist_moe.cli.main", "evaluate", str(trained.run_dir)]
    line = f"cp -r {trained.run_dir} {tmp_path}/run; {shlex.join([*command[:-1], f'{tmp_path}/run'])} 2>&1 | true"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], check=False, timeout=200, cwd=REPOSITORY)
    assert done.returncode == 0
    assert (tmp_path / "run" / "evaluation.json").is_file()


@pytest.mark.long
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams(trained, closed):
    line = f"{sys.executable} -m dist_moe.cli.main inspect-model {trained.model} {closed}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, timeout=200, cwd=REPOSITORY
    )
    if closed == "2>&-":
        assert (done.returncode, done.stdout != "") == (0, True)
    else:
        expected = "" if "2" in closed else "dist-moe: error: cannot write to standard output: Bad file descriptor\n"
        assert (done.returncode, done.stdout, done.stderr) == (2, "", expected)


def test_a_console_without_unicode(tmp_path):
    """A file name in Cyrillic, a setting that is an emoji, and a terminal that has ASCII only."""
    config = tmp_path / "вопросы.yaml"
    config.write_text('{run_dir: r, model: {path: m}, data: {paths: [d]}, seed: "\U0001f600"}\n', encoding="utf-8")
    command = [sys.executable, "-m", "dist_moe.cli.main", "config", "show", "--config", str(config)]
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=200)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.isascii()
    assert b"seed" in line
    assert b"\\U0001f600" in line
