"""A finished run on a tiny model, made once; every case works on a copy of it."""

import math
import os
import shutil

import pytest

from dist_moe.cli.main import main
from dist_moe.weights import identity
from tests.checkpoint import prompt_rows, save_checkpoint, write_config, write_jsonl
from tests.unit.store.pickles.examples import analysis, write_pickle


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Analyzed and trained; all its paths are relative, so that a copy works like the original."""
    root = tmp_path_factory.mktemp("finished")
    before = os.getcwd()
    os.chdir(root)
    try:
        model = save_checkpoint(root / "model").relative_to(root)
        data = write_jsonl(root / "prompts.jsonl", prompt_rows()).relative_to(root)
        write_config(root / "run.yaml", model, data, "run")
        for command in ("analyze", "train"):
            assert main([command, "--config", "run.yaml"]) == 0
        assert main(["evaluate", "run"]) == 0
        assert main(["export", "run", "--delta", "--out", "delta.safetensors"]) == 0
        (root / "stopped").mkdir()
        (root / "stopped" / "STOP").touch()
        stopped = ["--run-dir", "stopped", "--train.masks", "run/masks.zarr"]
        assert main(["train", "--config", "run.yaml", *stopped]) == 0
        write_pickle(root / "old.pkl", analysis())
    finally:
        os.chdir(before)
    return root


@pytest.fixture(autouse=True)
def hashes_are_not_stored(monkeypatch):
    """A model's hash is stored beside it once its files are ten seconds old, by a command that is refused later too:
    then a case that took longer would find a file more."""
    monkeypatch.setattr(identity, "SETTLED_S", math.inf)


@pytest.fixture
def copy(finished, tmp_path, monkeypatch):
    """A copy of the finished run for one test; the current directory."""
    root = tmp_path / "case"
    shutil.copytree(finished, root)
    monkeypatch.chdir(root)
    return root
