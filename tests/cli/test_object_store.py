"""Results in an object store: a local server that speaks S3, and s3fs, as `pip install s3fs` would bring it.

The tests of places at URLs (fixture `bucket`), which otherwise write to memory, run against it as they are; here is
what only a store of its own kind can show: a bucket that is not there, keys that nobody knows, an upload that a kill
cuts off.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.buckets import s3_server
from tests.hub_repos import files_of

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
DIST_MOE = [sys.executable, "-m", "dist_moe.cli.main"]


@pytest.fixture(scope="module")
def server():
    with s3_server("bucket") as environment:
        yield environment


def command(environment, *words):
    done = subprocess.run([*DIST_MOE, *map(str, words)], env=environment, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout, done.stderr


def said(environment, *words):
    status, out, err = command(environment, *words)
    assert status == 0, err
    return out


def refused(environment, *words):
    status, _, err = command(environment, *words)
    assert status == 2, err
    (line,) = err.splitlines()
    return line


def test_urls_of_s3_are_as_those_in_memory(server):
    files = ["tests/unit/test_published.py", "tests/unit/store"]
    plain = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *files]
    done = subprocess.run([*plain, "--bucket", "s3://bucket"], env=server, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) >= 15


def test_a_run_and_its_stores_are_published_and_read_where_they_are(server, trained, tmp_path):
    url = "s3://bucket/runs/tiny"
    said(server, "publish", trained.run_dir, url)
    said(server, "fetch", url, tmp_path / "back")
    back = files_of(tmp_path / "back")
    assert back == {name: data for name, data in files_of(trained.run_dir).items() if name in back}
    assert {"train.yaml", "metrics.jsonl", "experts/index.json", "masks.zarr/zarr.json"} <= back.keys()
    assert not [name for name in back if name.startswith(("checkpoints", "analysis", "training"))]
    summary = said(server, "inspect", f"{url}/masks.zarr", "summary")
    assert summary.replace(url, "RUN") == said(server, "inspect", trained.masks, "summary").replace(
        str(trained.run_dir), "RUN"
    )
    said(server, "store", "copy", f"{url}/masks.zarr", tmp_path / "copy.zarr")
    assert files_of(tmp_path / "copy.zarr") == files_of(trained.masks)
    assert "is published already, and is not overwritten" in refused(server, "publish", trained.run_dir, url)
    again = ["--run-dir", tmp_path / "again", "--train.masks", f"{url}/masks.zarr"]
    said(server, "train", "--config", trained.config, *again)
    ours, theirs = (files_of(place / "experts") for place in (tmp_path / "again", trained.run_dir))
    weights = [name for name in ours if name.endswith(".safetensors")]
    assert weights
    assert all(ours[name] == theirs[name] for name in weights)


def test_what_cannot_be_used_is_one_line(server, trained, tmp_path):
    missing = refused(server, "publish", trained.masks, "s3://nobodys/masks")
    assert missing.startswith("dist-moe: error: cannot write s3://nobodys/masks/")
    assert "The specified bucket does not exist" in missing
    (away := dict(server)).pop("AWS_ACCESS_KEY_ID")
    away.pop("AWS_SECRET_ACCESS_KEY")
    away |= {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}
    assert "Unable to locate credentials" in refused(away, "publish", trained.masks, "s3://bucket/masks")
    gone = server | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    assert "Could not connect to the endpoint URL" in refused(gone, "fetch", "s3://bucket/masks", tmp_path / "new")
    without = server | {"PYTHONPATH": str(Path.cwd())}
    assert "cannot use s3://bucket/x (ImportError: Install s3fs to access S3): check the URL, and what its" in refused(
        without, "publish", trained.masks, "s3://bucket/x"
    )
    assert not (tmp_path / "new").exists()


def test_keys_that_nobody_knows_are_one_line(trained, tmp_path):
    """What making the bucket asks for is granted to anybody, and nothing after that."""
    with s3_server("bucket", INITIAL_NO_AUTH_ACTION_COUNT="3") as environment:
        for words in (("publish", trained.masks, "s3://bucket/x"), ("fetch", "s3://bucket/x", tmp_path / "new")):
            line = refused(environment, *words)
            assert "s3://bucket/x (PermissionError: " in line
            assert "check the URL, and what its file system needs (rights, a connection, a package)" in line
    assert not (tmp_path / "new").exists()


class Wire:
    """A connection to a server through which a number of bytes go at most; then the process at this end is killed."""

    def __init__(self, port):
        self.port, self.sent, self.most, self.killed = port, 0, None, None
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near = self.listener.accept()[0]
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.port))
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(source, target, source is near), daemon=True).start()

    def _pass(self, source, target, counts):
        try:
            while data := source.recv(4096):
                if counts:
                    data = data if self.most is None else data[: max(self.most - self.sent, 0)]
                    self.sent += len(data)
                target.sendall(data)
                if counts and self.most is not None and self.sent >= self.most:
                    os.kill(self.killed.pid, signal.SIGKILL)
                    break
        except OSError:
            pass
        source.close()
        target.close()


def test_an_upload_that_a_kill_cuts_off_is_not_there_and_can_be_repeated(server, trained, tmp_path):
    wire = Wire(int(server["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    through = server | {"AWS_ENDPOINT_URL": wire.url}
    assert command(through, "publish", trained.masks, "s3://bucket/whole")[0] == 0
    total = wire.sent
    for part in (0.4, 0.97):
        url = f"s3://bucket/cut-{part}"
        wire.sent, wire.most = 0, int(part * total)
        wire.killed = subprocess.Popen([*DIST_MOE, "publish", str(trained.masks), url], env=through)
        assert wire.killed.wait(timeout=240) == -signal.SIGKILL
        wire.most = None
        line = refused(server, "fetch", url, tmp_path / "back")
        assert f"{url} has no published.json: nothing is published there, or publishing it was interrupted" in line
        assert not (tmp_path / "back").exists()
        said(server, "publish", trained.masks, url)
        said(server, "fetch", url, tmp_path / f"back-{part}")
        assert files_of(tmp_path / f"back-{part}") == files_of(trained.masks)
    wire.listener.close()
