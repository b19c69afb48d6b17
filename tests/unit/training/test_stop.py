import errno
import os
import signal
from pathlib import Path

import pytest
import torch

from dist_moe.errors import UserError
from dist_moe.interruption import Interruption
from dist_moe.parallel.comm import SoloComm
from dist_moe.training.stop import StopRequest


@pytest.fixture
def stop(tmp_path):
    with StopRequest(tmp_path / "STOP", tmp_path / "REQUEUE", SoloComm(torch.device("cpu")), os.getppid()) as request:
        yield request


def test_nobody_asks(stop):
    assert stop.agreed() == (False, False)
    assert stop.agreed(written=True) == (False, True)


def test_a_signal_asks_until_it_is_left(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.agreed() == (True, False)
    assert stop.agreed() == (True, False)
    stop.__exit__()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.parametrize(
    ("files", "stopped", "left"),
    [
        (("STOP",), True, ()),
        (("REQUEUE",), True, ("REQUEUE",)),
        (("STOP", "REQUEUE"), True, ()),
        (("STOP", "REQUEUE"), False, ()),
        (("REQUEUE",), False, ()),
    ],
)
def test_files_ask_and_only_a_granted_requeue_is_left(stop, tmp_path, files, stopped, left):
    for name in files:
        (tmp_path / name).touch()
    assert stop.agreed() == (True, False)
    stop.done(stopped)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left)
    stop.begin()
    assert not list(tmp_path.iterdir())


def test_a_directory_of_that_name_asks_nothing_and_stays(stop, tmp_path):
    for name in ("STOP", "REQUEUE"):
        (tmp_path / name).mkdir()
    stop.begin()
    assert stop.agreed() == (False, False)
    stop.done(stopped=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["REQUEUE", "STOP"]


def test_a_wish_that_cannot_be_removed_is_one_line(stop, tmp_path, monkeypatch):
    (tmp_path / "STOP").touch()

    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(UserError, match="STOP: Permission denied"):
        stop.done(stopped=True)


def test_another_parent_asks(tmp_path):
    comm = SoloComm(torch.device("cpu"))
    paths = (tmp_path / "STOP", tmp_path / "REQUEUE")
    assert StopRequest(*paths, comm, launcher=os.getppid() + 1).agreed() == (True, False)
    assert StopRequest(*paths, comm, launcher=None).agreed() == (False, False)


def test_an_interrupt_that_was_lost_asks(tmp_path):
    interruption = Interruption()
    stop = StopRequest(tmp_path / "STOP", tmp_path / "REQUEUE", SoloComm(torch.device("cpu")), None, interruption)
    assert stop.agreed() == (False, False)
    with pytest.raises(KeyboardInterrupt):
        interruption(signal.SIGINT, None)
    assert stop.agreed() == (True, False)


def test_a_failure_is_raised_when_all_agree(stop):
    with stop.failing_together():
        raise UserError("full")
    with pytest.raises(UserError, match="full"):
        stop.agreed()
    with pytest.raises(ZeroDivisionError), stop.failing_together():
        raise ZeroDivisionError
