"""One rank reads a model's bytes for all; a rank with other files reads its own."""

import shutil
from unittest.mock import patch

import pytest

from dist_moe.weights import identity
from dist_moe.weights.directory import model_hash
from tests.checkpoint import save_checkpoint
from tests.ranks.harness import run_ranks


def hashed(comm, paths):
    """The hash that a rank is told of its own path, and how often it has read a model."""
    with patch.object(identity, "model_hash", side_effect=model_hash) as read:
        return identity.shared_model_hash(paths[comm.rank], comm), read.call_count


def test_one_rank_reads_for_all(tmp_path):
    model = save_checkpoint(tmp_path / "model")
    expected = model_hash(model)
    assert run_ranks(2, hashed, [model, model]) == [(expected, 1), (expected, 0)]


def test_a_rank_with_files_of_its_own_reads_them(tmp_path):
    model = save_checkpoint(tmp_path / "model")
    copy = shutil.copytree(model, tmp_path / "copy", copy_function=shutil.copy2)
    expected = model_hash(model)
    assert run_ranks(2, hashed, [model, copy]) == [(expected, 1), (expected, 1)]


def test_a_rank_with_another_model_is_an_error_on_all(tmp_path):
    model, other = save_checkpoint(tmp_path / "model"), save_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(AssertionError, match="UserError: ranks differ: the model's hash is"):
        run_ranks(2, hashed, [model, other])
