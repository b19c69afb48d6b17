"""`dist-moe ... | head`: a command that prints ends without a word when its reader has gone, through a real pipe."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dist_moe.cli.main import main
from tests.unit.store.example import tiled_contents, write_contents
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
        "config": ["show", "--config", trained.config],
        "verify": [trained.model, trained.model, "--masks", trained.masks],
    }


def without_reader(*command):
    """Status and stderr of a process whose stdout is a pipe that nobody reads."""
    words = [sys.executable, *map(str, command)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"DS_ACCELERATOR": "cpu"}  # DeepSpeed warns of a device that it has to find
    with subprocess.Popen(words, **streams, cwd=REPOSITORY, env=env) as process:
        process.stdout.close()
        err = process.stderr.read()
        return process.wait(timeout=200), err


LONG = [
    pytest.param(name, marks=pytest.mark.long) for name in ("checkpoint", "import", "inspect-model", "verify", "config")
]


@pytest.mark.parametrize("name", ["store", "families", *LONG])
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
    write_contents(tmp_path / "masks.zarr", tiled_contents(700))
    line = f"set -o pipefail; {sys.executable} tools/inspect_masks.py --json {tmp_path}/masks.zarr | head -n 2"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False, timeout=200, cwd=REPOSITORY
    )
    assert (done.returncode, done.stderr, done.stdout) == (141, "", '{\n  "facts": {\n')


def test_commands_that_do_more_than_print_go_on(trained, tmp_path):
    """Only the console is lost: an analysis and a training come to the same end, whoever has stopped to read."""
    told = "dist-moe: the output is read no more (Broken pipe); going on without it"
    run = ["--config", trained.config, "--run-dir", tmp_path / "run"]
    for command in ("analyze", "train"):
        status, err = without_reader("-m", "dist_moe.cli.main", command, *run)
        assert status == 0
        assert "Traceback" not in err
        assert err.splitlines().count(told) == 1
    for name in ("metrics.jsonl", "experts/index.json"):
        assert (tmp_path / "run" / name).is_file()


def test_a_full_standard_output(trained):
    """What a command prints is its product: it is an error that it cannot."""
    command = [sys.executable, "-m", "dist_moe.cli.main", "inspect-model", str(trained.model)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=200)
    assert done.returncode == 2
    assert done.stderr == "dist-moe: error: cannot write to standard output: No space left on device\n"


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


def test_a_console_without_unicode(trained, tmp_path):
    """A file name in Cyrillic, a row with an emoji, and a terminal that has ASCII only."""
    data = tmp_path / "вопросы.jsonl"
    data.write_text('{"prompt": "\U0001f600", "label": "\U0001f600"}\n', encoding="utf-8")
    command = [sys.executable, "-m", "dist_moe.cli.main", "evaluate", str(trained.run_dir), "--data", str(data)]
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONIOENCODING": "ascii",
    }
    done = subprocess.run(command, capture_output=True, env=environment, check=False, timeout=200)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if b"Scoring" not in line]
    assert line.isascii()
    assert b"`label` must be safe or unsafe" in line
    assert b"\\U0001f600" in line
