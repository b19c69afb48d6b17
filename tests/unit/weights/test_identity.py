"""A model's hash is read once, kept beside the model, and distrusted as soon as a file may have changed."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

from dist_moe.weights import identity
from dist_moe.weights.directory import KEPT_HASH, model_hash, weight_files
from dist_moe.weights.identity import identify
from dist_moe.weights.other_files import other_files
from tests.checkpoint import save_checkpoint


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint whose files have not changed for long enough."""
    monkeypatch.setattr(identity, "SETTLED_S", -3600.0)
    return save_checkpoint(tmp_path / "model")


@pytest.fixture
def num_read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The models whose bytes were read, once a time."""
    seen: list[Path] = []

    def read(path: Path) -> str:
        seen.append(path)
        return model_hash(path)

    monkeypatch.setattr(identity, "model_hash", read)
    return seen


def test_the_bytes_are_read_once(model: Path, num_read: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    expected = model_hash(model)
    assert identify(model).model_hash == expected
    assert not caplog.records
    with caplog.at_level(logging.INFO, "dist_moe"):
        assert identify(model).model_hash == expected
    assert len(num_read) == 1
    assert caplog.messages == [
        f"The model's hash is taken from {model / KEPT_HASH}, because no file has changed since; "
        "--rehash computes it again"
    ]
    assert identify(model, rehash=True).model_hash == expected
    assert len(num_read) == 2


def first_shard(model: Path) -> Path:
    return model / weight_files(model).shards[0]


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    with file.open("r+b") as stream:
        stream.write(data)


def in_place_under_the_old_time(model: Path) -> None:
    file = first_shard(model)
    before = file.stat()
    flip_a_bit(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def another_file_of_that_time(model: Path) -> None:
    file = first_shard(model)
    copy = file.with_suffix(".copy")
    shutil.copy2(file, copy)
    flip_a_bit(copy)
    os.utime(copy, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    copy.replace(file)


def a_longer_configuration(model: Path) -> None:
    with (model / "config.json").open("a") as stream:
        stream.write("\n")


@pytest.mark.parametrize("change", [in_place_under_the_old_time, another_file_of_that_time, a_longer_configuration])
def test_a_changed_file_is_read_again(model: Path, change, num_read: list[Path]) -> None:
    before = identify(model).model_hash
    change(model)
    after = identify(model).model_hash
    assert after == model_hash(model) != before
    assert len(num_read) == 2


def test_a_copy_with_all_times_is_read_again(model: Path, num_read: list[Path]) -> None:
    identify(model)
    copy = Path(shutil.copytree(model, model.with_name("copy"), copy_function=shutil.copy2))
    assert (copy / KEPT_HASH).exists()
    flip_a_bit(first_shard(copy))
    assert identify(copy).model_hash == model_hash(copy)
    assert num_read == [model, copy]


@pytest.mark.parametrize("text", ["", "{}", '{"format": "dist_moe-model-hash", "version": 2}', "no JSON"])
def test_what_is_kept_but_damaged_is_written_anew(model: Path, text: str, num_read: list[Path]) -> None:
    identify(model)
    (model / KEPT_HASH).write_text(text)
    assert identify(model).model_hash == model_hash(model)
    identify(model)
    assert len(num_read) == 2


def test_a_forged_hash_without_its_digest_is_not_believed(model: Path) -> None:
    identify(model)
    text = (model / KEPT_HASH).read_text()
    (model / KEPT_HASH).write_text(text.replace(model_hash(model), "0" * 64))
    assert identify(model).model_hash == model_hash(model)


def test_nothing_is_kept_of_files_that_have_just_changed(tmp_path: Path) -> None:
    model = save_checkpoint(tmp_path / "model")
    assert identify(model).model_hash == model_hash(model)
    assert not (model / KEPT_HASH).exists()


def test_nothing_is_kept_of_files_that_change_meanwhile(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> str:
        found = model_hash(path)
        flip_a_bit(first_shard(path))
        return found

    monkeypatch.setattr(identity, "model_hash", read)
    identify(model)
    assert not (model / KEPT_HASH).exists()


def test_a_model_that_cannot_be_written_beside_is_read_each_time(
    model: Path, num_read: list[Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("dist_moe.artefacts.write_json_atomic", refuse)
    with caplog.at_level(logging.INFO, "dist_moe"):
        assert identify(model).model_hash == identify(model).model_hash == model_hash(model)
    assert len(num_read) == 2
    assert caplog.messages[0].endswith(
        "cannot store the model's hash (Read-only file system), so every start reads all weights"
    )


def test_what_is_kept_is_no_part_of_the_model(model: Path) -> None:
    before, files = model_hash(model), other_files(model)
    identify(model)
    assert (model / KEPT_HASH).exists()
    assert (model_hash(model), other_files(model)) == (before, files)
