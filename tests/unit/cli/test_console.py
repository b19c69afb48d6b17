"""What the package logs is printed by the commands, and by nothing else."""

import errno
import logging
import os
import socket
import subprocess
import sys

import pytest

from dist_moe.cli.console import console

LOG = logging.getLogger("dist_moe.workflows.any")


def test_information_is_on_stdout_and_a_warning_on_stderr(capsys):
    with console():
        LOG.info("100 % of {}")
        LOG.warning("rank 0 waits")
        LOG.debug("nobody asked")
    LOG.info("after the end")
    printed = capsys.readouterr()
    assert printed.out == "100 % of {}\n"
    assert printed.err == "dist-moe: rank 0 waits\n"


def test_a_library_that_sets_up_the_root_does_not_double_the_lines(capsys):
    root, handler = logging.getLogger(), logging.StreamHandler(sys.stdout)
    root.addHandler(handler)
    try:
        with console():
            LOG.info("once")
    finally:
        root.removeHandler(handler)
    assert capsys.readouterr().out == "once\n"


def test_a_lost_stdout_is_no_affair_of_logging(monkeypatch):
    def lost(text):
        raise OSError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr(sys.stdout, "write", lost)
    with console(), pytest.raises(OSError, match="Broken pipe"):
        LOG.info("nobody reads")


def test_the_library_prints_nothing_unasked():
    code = "import logging, dist_moe; log = logging.getLogger('dist_moe.x'); log.info('a'); log.warning('b')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert (found.stdout, found.stderr) == ("", "")


RANK = """
import logging
from dist_moe.cli.console import console
from dist_moe.parallel.launch import process_group
with console(), process_group() as comm:
    logging.getLogger("dist_moe.x").info("told")
    logging.getLogger("dist_moe.x").warning(f"rank {comm.rank}")
"""


def test_only_the_first_rank_informs():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    job = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK], env={**job, "RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    printed = [rank.communicate(timeout=120) for rank in ranks]
    assert [out for out, _ in printed] == ["told\n", ""]
    assert ["dist-moe: rank 0" in printed[0][1], "dist-moe: rank 1" in printed[1][1]] == [True, True]
