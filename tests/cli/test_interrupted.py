"""Ctrl-C and SIGTERM: one line, status 130, nothing half written."""

import signal
import subprocess
import sys

import pytest

# A command in the middle of its writing: it says so, and waits to be interrupted.
EXPORT = """
import signal, sys, time
from dist_moe.workflows import export

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored

def slow(*args, **kwargs):
    print("writing", flush=True)
    time.sleep(60)

import dist_moe.weights.export as module
module.shutil.copyfile = slow
from dist_moe.cli.main import main
sys.argv = ["dist-moe", *sys.argv[1:]]
sys.exit(main())
"""


def interrupted(number, *command):
    with subprocess.Popen(
        [sys.executable, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert any(line == "writing\n" for line in process.stdout)
        process.send_signal(number)  # once: a flush that it interrupts writes the line again
        process.stdout.read()
        err = process.stderr.read()
        return process.wait(timeout=100), err


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_export(trained, tmp_path, number):
    status, err = interrupted(number, "-c", EXPORT, "export", trained.run_dir, "--out", tmp_path / "new" / "out")
    assert (status, err) == (130, "dist-moe: interrupted\n")
    assert list(tmp_path.iterdir()) == []
