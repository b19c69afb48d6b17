"""Places at URLs for tests, and a local server that speaks S3: moto's, which `make s3` puts beside the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

S3 = Path(".cache/s3").resolve()
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Bucket:
    """An empty place at a URL, and its file system."""

    url: str
    files: Any
    root: str
    """The place, as its file system names it."""

    def names(self, below: str) -> list[str]:
        """Of all files below a part of it, sorted."""
        self.files.invalidate_cache()
        return sorted(each.removeprefix(f"{self.root}/{below}/") for each in self.files.find(f"{self.root}/{below}"))


@contextmanager
def bucket_at(url: str) -> Iterator[Bucket]:
    """A place below a URL, emptied again afterwards."""
    import fsspec

    files, root = fsspec.url_to_fs(f"{url}/of-a-test")
    yield Bucket(f"{url}/of-a-test", files, root)
    if files.exists(root):
        files.rm(root, recursive=True)


@contextmanager
def s3_server(*buckets: str, **settings: str) -> Iterator[dict[str, str]]:
    """The environment of a process that uses a new server with these buckets; `settings` is the server's own."""
    assert (S3 / "moto").is_dir(), f"no moto and s3fs in {S3}: make s3"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}
    clean["PYTHONPATH"] = f"{S3}{os.pathsep}{Path.cwd()}"
    command = [sys.executable, "-c", SERVER]
    server = subprocess.Popen(
        command,
        env=clean | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        keys = {"AWS_ACCESS_KEY_ID": "ours", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        environment = clean | keys | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}"}
        for name in buckets:
            make = f"import fsspec; fsspec.filesystem('s3').mkdir({name!r})"
            subprocess.run([sys.executable, "-c", make], env=environment, check=True, timeout=120)
        yield environment
    finally:
        server.kill()
        server.wait()
