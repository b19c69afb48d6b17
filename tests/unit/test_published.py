"""Directories at URLs: what is there after a kill, after damage, and from a list that somebody else has written."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem

from dist_moe.artefacts import Written, write_sealed
from dist_moe.cli.main import main
from dist_moe.errors import UserError
from dist_moe.files import hash_file
from dist_moe.published import KIND, LIST, VERSION, fetch, make_parents, publish
from dist_moe.workflows import publish as workflow
from dist_moe.workflows.run_lock import run_lock
from tests.forks import start_fork

NAMES = ["card.md", "deep/er/b.bin", "empty", "weights.bin"]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "results"
    (place / "deep/er").mkdir(parents=True)
    (place / "card.md").write_text("# a card\n")
    (place / "deep/er/b.bin").write_bytes(os.urandom(3000))
    (place / "empty").touch()
    (place / "weights.bin").write_bytes(os.urandom(200_000))
    (place / ".lock").write_text("no result")
    return place


def contents(place: Path) -> dict[str, str]:
    return {str(file.relative_to(place)): hash_file(file) for file in sorted(place.rglob("*")) if file.is_file()}


def test_what_is_published_comes_back_with_every_byte(folder, bucket, tmp_path, capsys):
    url = f"{bucket.url}/run"
    assert main(["publish", str(folder), url]) == 0
    assert main(["fetch", url, str(tmp_path / "back")]) == 0
    expected = contents(folder)
    del expected[".lock"]
    assert contents(tmp_path / "back") == expected
    out = capsys.readouterr().out
    assert f"Published 4 files, 0.2 MB, of {folder} at {url}" in out
    assert f"Fetched 4 files, 0.2 MB, of {url} to {tmp_path}/back, each as published" in out
    assert bucket.names("run") == sorted([*NAMES, LIST])


class Killed(LocalFileSystem):
    """Ends its process in the middle of a write."""

    protocol = "killed"
    left = 0

    def open(self, path, mode="rb", **settings):
        file = super().open(path, mode, **settings)
        if "w" in mode:
            type(self).left -= 1
            if type(self).left < 0:
                file.write(b"half")
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        return file

    def put_file(self, source, target, **_):
        with self.open(target, "wb") as file:
            file.write(Path(source).read_bytes())

    def pipe_file(self, path, value, mode="overwrite", **_):
        with self.open(path, "wb") as file:
            file.write(value)


def publish_until_killed(folder, place, number):
    Killed.left = number
    fsspec.register_implementation("killed", Killed)
    publish(folder, NAMES, f"killed://{place}")
    return 0


@pytest.mark.parametrize("number", range(len(NAMES) + 2))
def test_a_publishing_that_is_killed_is_not_there_and_can_be_repeated(folder, tmp_path, number):
    place, url = tmp_path / "there", f"file://{tmp_path}/there"
    (tmp_path / "fork").mkdir()
    status = start_fork(tmp_path / "fork", publish_until_killed, folder, place, number).status()
    if number <= len(NAMES):
        assert status == -signal.SIGKILL
        with pytest.raises(UserError, match=r"nothing is published there, or|not valid JSON"):
            fetch(url, tmp_path / "back")
        assert not (tmp_path / "back").exists()
        if (place / LIST).exists():
            (place / LIST).unlink()  # an object store would not have half of it
        publish(folder, NAMES, url)
    else:
        assert status == 0
    fetch(url, tmp_path / "back")
    assert contents(tmp_path / "back") == {name: hash_file(folder / name) for name in NAMES}


def test_what_has_changed_is_refused(folder, bucket, tmp_path):
    url, files, root = f"{bucket.url}/run", bucket.files, f"{bucket.root}/run"
    publish(folder, NAMES, url)
    with pytest.raises(UserError, match=f"{url} is published already, and is not overwritten"):
        publish(folder, NAMES, url)
    data = files.cat_file(f"{root}/weights.bin")
    files.pipe_file(f"{root}/weights.bin", data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=f"{url}/weights.bin has changed since it was published"):
        fetch(url, tmp_path / "back")
    files.rm(f"{root}/weights.bin")
    with pytest.raises(UserError, match=f"cannot read {url}/weights.bin"):
        fetch(url, tmp_path / "back")
    listed = json.loads(files.cat_file(f"{root}/{LIST}"))
    listed["files"]["empty"]["num_bytes"] = 7
    files.pipe_file(f"{root}/{LIST}", json.dumps(listed).encode())
    with pytest.raises(UserError, match=rf"{url}/{LIST} is damaged: .*: publish it again, at another URL"):
        fetch(url, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", ""])
def test_a_list_cannot_write_elsewhere(tmp_path, name):
    there = tmp_path / "there"
    there.mkdir()
    (tmp_path / "evil").write_text("x")
    write_sealed(there / LIST, KIND, VERSION, {"files": {name: {"sha256": "0", "num_bytes": 1}}})
    with pytest.raises(UserError, match=r"outside of its directory: do not trust it"):
        fetch(f"file://{there}", tmp_path / "back")
    assert (tmp_path / "evil").read_text() == "x"


def test_of_a_run_only_results_are_published_and_not_while_it_works(folder, bucket, monkeypatch):
    (folder / "train.yaml").write_text("x")
    for name in ("checkpoints", "analysis", "training"):
        (folder / name).mkdir()
        (folder / name / "part").write_text("x")
    found = workflow.publish(folder, f"{bucket.url}/run")
    assert sorted(found.files) == sorted([*NAMES, "train.yaml"])
    assert found.files["card.md"] == Written.of(folder / "card.md")
    monkeypatch.setattr("dist_moe.workflows.run_lock.WAIT_S", 0.1)
    with run_lock(folder, workflow.SoloComm(None)), pytest.raises(UserError, match="in use by another job"):
        workflow.publish(folder, f"{bucket.url}/other")
    assert bucket.names("other") == []


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("results", r"expected a URL, such as s3://bucket/name, got 'results'"),
        ("nosuch://bucket", r"cannot use nosuch://bucket \(ValueError: Protocol not known"),
        ("file:///proc/none", r"cannot write file:///proc/none/card.md \(.*: check the URL, and what its file system"),
    ],
)
def test_urls_that_are_none(folder, url, line):
    with pytest.raises(UserError, match=line):
        publish(folder, NAMES, url)


def test_directories_are_made_and_buckets_are_not():
    """tests/cli/test_object_store.py has what a store then says."""
    made = []
    for place in ("/srv/runs/tiny/file", "bucket/runs/tiny/file"):
        make_parents(SimpleNamespace(makedirs=lambda path, exist_ok: made.append(path)), place)
    assert made == ["/srv/runs/tiny"]


def test_a_file_that_arrives_short_is_noticed(folder, bucket, monkeypatch):
    monkeypatch.setattr(bucket.files, "size", lambda *_: 1)
    with pytest.raises(UserError, match=r"it has 1 bytes there and 9 here: run the same command again"):
        publish(folder, NAMES, f"{bucket.url}/run")
    assert bucket.names("run") == ["card.md"]
