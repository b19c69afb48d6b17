"""Ctrl-C and SIGTERM: one line, status 130, nothing half written."""

import os
import shutil
import signal
import time

import pytest

from dist_moe.cli.main import main
from tests.forks import start_fork


def slow_export(*words):
    """A command in the middle of its writing: it says so, and waits to be interrupted."""

    def slow(*args, **kwargs):
        os.write(1, b"writing")
        time.sleep(60)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    shutil.copyfile = slow
    return main(["export", *map(str, words)])


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_export(trained, tmp_path, tmp_path_factory, number):
    job = start_fork(
        tmp_path_factory.mktemp("streams"), slow_export, trained.run_dir, "--out", tmp_path / "new" / "out"
    )
    while not (job.out.exists() and job.out.read_text()):
        assert job.process.is_alive()
        time.sleep(0.01)
    os.kill(job.process.pid, number)
    assert (job.status(), job.err.read_text()) == (130, "dist-moe: interrupted\n")
    assert list(tmp_path.iterdir()) == []
