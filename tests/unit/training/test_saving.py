"""Checkpoints written beside the next steps: the bytes of the step they are of, one at a time, errors of the run."""

import errno
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from dist_moe.errors import UserError
from dist_moe.parallel.comm import SoloComm
from dist_moe.training.adam import AdamState
from dist_moe.training.checkpoint_index import Layout
from dist_moe.training.dense import DenseWeights
from dist_moe.training.saving import CheckpointSaver
from dist_moe.training.state import Position, RevisionInForce, TrainState
from dist_moe.weights import parts_io

FILE = "experts-00000.safetensors"


def saver(root, *, asynchronous):
    moments = {name: torch.full((4,), float(i)) for i, name in enumerate(("master", "exp_avg", "exp_avg_sq"))}
    state = AdamState(**moments, step=torch.tensor(1.0), is_weight=False)
    return CheckpointSaver(
        root=root,
        optimizer=SimpleNamespace(
            expert_state={(0, 3): state},
            state_bytes=48,
            changed=[(0, 3)],
            state_of={(0, 3): state}.get,
            dense=DenseWeights({}, torch.device("cpu")),
        ),
        schedule=SimpleNamespace(state_dict=lambda: {"last_epoch": 1, "_last_lr": [0.5]}),
        comm=SoloComm(torch.device("cpu")),
        facts={"seed": 0},
        layout=Layout("local", 1, 1, "p"),
        keep=2,
        asynchronous=asynchronous,
    )


def after(step):
    first = TrainState.first(Position(0, 0, (1, 0)), 2, RevisionInForce(0, "d"), seed=0)
    return replace(first, step=step)


@pytest.fixture
def gate(monkeypatch):
    """Holds back every write until it is set."""
    opened, write = threading.Event(), parts_io.write_tensors

    def held_back(path, tensors):
        assert opened.wait(20)
        write(path, tensors)

    monkeypatch.setattr(parts_io, "write_tensors", held_back)
    return opened


def test_what_later_steps_change_is_not_written(tmp_path, gate):
    late = saver(tmp_path / "late", asynchronous=True)
    late.save(after(2))
    for part in ("master", "exp_avg", "exp_avg_sq", "step"):
        getattr(late.optimizer.expert_state[0, 3], part).add_(1)
    assert not late.written
    assert not list((tmp_path / "late").glob("step-*"))
    gate.set()
    late.finish()

    at_once = saver(tmp_path / "at once", asynchronous=False)
    at_once.save(after(2))
    for name in (FILE, "index.json"):
        one, two = (tmp_path / root / "step-00000002" / name for root in ("late", "at once"))
        assert one.read_bytes() == two.read_bytes()
    assert load_file(one.with_name(FILE))["0.3.exp_avg"].tolist() == [1.0] * 4
    assert not at_once.written


def test_one_write_at_a_time_and_the_last_ones_are_kept(tmp_path, gate):
    gate.set()
    several = saver(tmp_path, asynchronous=True)
    for step in (2, 4, 6):
        several.save(after(step))
        assert len(list(tmp_path.glob(".step-*.partial-*"))) == 1
    several.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000006"]


def test_a_write_that_fails_is_the_runs_error(tmp_path, monkeypatch):
    def full(path, tensors):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(parts_io, "write_tensors", full)
    failing = saver(tmp_path, asynchronous=True)
    failing.save(after(2))
    with pytest.raises(UserError, match=rf"cannot write .*{FILE}: No space left on device"):
        failing.finish()
    assert not list(tmp_path.glob("step-*"))
