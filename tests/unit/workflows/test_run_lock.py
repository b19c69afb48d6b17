"""One job at a time in a run directory."""

import fcntl
import os
import signal
import socket
import threading
import time

import pytest
import torch

from dist_moe.errors import UserError
from dist_moe.parallel.comm import SoloComm
from dist_moe.workflows import run_lock as module
from dist_moe.workflows.run_holder import Holder
from dist_moe.workflows.run_lock import run_lock
from tests.forks import start_fork

COMM = SoloComm(torch.device("cpu"))


def hold(run_dir):
    with run_lock(run_dir, COMM):
        print("held", flush=True)
        time.sleep(100)


def test_a_second_job_is_refused_and_told_who_is_there(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "dist_moe")
    monkeypatch.setattr(module, "WAIT_S", 0.2)
    with run_lock(tmp_path / "run", COMM):
        with pytest.raises(UserError) as error, run_lock(tmp_path / "run", COMM):
            pytest.fail("two jobs at once")
        assert f"{tmp_path / 'run'} is in use by another job, process {os.getpid()} on " in str(error.value)
        assert len(caplog.messages) == 1
        assert (tmp_path / "run" / ".lock").exists()
    assert not (tmp_path / "run").exists()


def test_a_job_waits_for_one_that_ends_meanwhile(tmp_path):
    tmp_path.joinpath("metrics.jsonl").touch()
    first = run_lock(tmp_path, COMM)
    first.__enter__()
    ending = []
    release = threading.Timer(0.4, lambda: (ending.append(True), first.__exit__(None, None, None)))
    release.start()
    with run_lock(tmp_path, COMM):
        assert ending
        release.join()
        held = os.open(tmp_path / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):  # it has the file that is there, not the one that the first has removed
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(held)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_killed_job_leaves_no_lock(tmp_path, caplog):
    caplog.set_level("INFO", "dist_moe")
    run_dir = tmp_path / "run"
    killed = start_fork(tmp_path, hold, run_dir)
    while not (killed.out.exists() and killed.out.read_text() == "held\n"):
        assert killed.process.is_alive()
        time.sleep(0.01)
    assert Holder.of(run_dir) == Holder(True, f"process {killed.process.pid} on {socket.gethostname()}")
    os.kill(killed.process.pid, signal.SIGKILL)
    assert killed.status() == -signal.SIGKILL
    assert Holder.of(run_dir).is_held is False
    assert (run_dir / ".lock").exists()
    with run_lock(run_dir, COMM):
        assert f"process {os.getpid()} on " in (run_dir / ".lock").read_text()
    assert not caplog.messages


def test_jobs_that_share_keep_others_out_until_the_last_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.2)
    tmp_path.joinpath("metrics.jsonl").touch()
    with run_lock(tmp_path, COMM, shared=True) as first:
        with run_lock(tmp_path, COMM, shared=True):
            pass
        with pytest.raises(UserError, match="in use by another job"), run_lock(tmp_path, COMM):
            pytest.fail("alone beside one that shares")
        assert first.alone()
        with pytest.raises(UserError, match="in use by another job"), run_lock(tmp_path, COMM, shared=True):
            pytest.fail("shares beside one that is alone")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_of_two_that_share_the_last_is_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.2)
    with run_lock(tmp_path, COMM, shared=True) as first:
        with run_lock(tmp_path, COMM, shared=True) as second:
            assert not first.alone()
            assert second.alone()
        with run_lock(tmp_path, COMM):  # neither has it any more
            pass


def test_a_job_that_is_alone_need_not_wait_to_be(tmp_path):
    with run_lock(tmp_path, COMM) as lock:
        assert lock.alone()


def test_where_there_are_no_locks_it_is_said(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "dist_moe")

    def unsupported(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(module.fcntl, "flock", unsupported)
    with run_lock(tmp_path, COMM):
        assert Holder.of(tmp_path).is_held is None
    assert "has no locks (Operation not supported)" in caplog.messages[0]
