"""A directory that has the name of a repository of the hub."""

import logging
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from dist_moe.parallel.comm import SoloComm
from dist_moe.workflows.model_place import placed


@pytest.mark.parametrize("cached", [True, False])
def test_a_directory_that_hides_a_repository_is_said(tmp_path, monkeypatch, caplog, cached):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    Path("owner/tiny").mkdir(parents=True)
    if cached:
        Path("cache/models--owner--tiny").mkdir(parents=True)
    with caplog.at_level(logging.INFO, logger="dist_moe"):
        assert placed(Path("owner/tiny"), "model.path", SoloComm(torch.device("cpu"))) == Path("owner/tiny")
    line = "model.path: the directory owner/tiny is read, not the repository of that name in the hub's cache"
    assert caplog.messages == [line] * cached
