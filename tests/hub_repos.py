"""What the tests' hub holds: repositories with branches and commits, and what goes wrong with a request."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LARGE = 2000
"""Files of so many bytes are stored beside, as the hub does from 10 MB on."""


@dataclass
class Repo:
    """A repository: its files at each commit."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Put a branch at a new commit with these files only."""
        names = json.dumps([len(self.commits), *((name, sha256(data)) for name, data in sorted(files.items()))])
        commit = hashlib.sha1(names.encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        return commit


@dataclass
class Hub:
    """Repositories by "models/owner/name" or "datasets/owner/name"; what was asked, as "METHOD path"."""

    repos: dict[str, Repo] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    """Large files that were uploaded, by digest."""
    fails: dict[str, int] = field(default_factory=dict)
    """Part of "METHOD path" -> status with which it is answered; 0: the connection is closed."""
    cuts: dict[str, int] = field(default_factory=dict)
    """Part of "METHOD path" -> after how many bytes of its first answer the connection is closed."""
    stalls: set[str] = field(default_factory=set)
    """Parts of "METHOD path": until the other side is gone, an answer stops in the middle of its file, and an upload
    has none."""
    ranges: list[str] = field(default_factory=list)
    """The parts of files that were asked for, as "bytes=7-"."""
    alters: bool = False
    """Whether a large file that is uploaded loses its last byte."""
    url: str = ""

    @property
    def beside(self) -> str:
        """Where large files are downloaded: the same server, by another name."""
        return self.url.replace("127.0.0.1", "localhost")

    def downloads(self, name: str) -> list[str]:
        """The files of owner/name that were downloaded, each as often as it was asked for, sorted."""
        found = (re.fullmatch(rf"GET (?:/large)?/{name}/resolve/[^/]+/(.+)", each) for each in self.asked)
        return sorted(each[1] for each in found if each is not None)

    def put(self, name: str, files: dict[str, bytes], **of_repo: Any) -> str:
        """A repository, or another commit on its main; returns the commit."""
        return self.repos.setdefault(name, Repo(**of_repo)).commit(files)


def files_of(path: Path) -> dict[str, bytes]:
    """The files of a directory, by name in it."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def stored(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {"size": len(data), "blobId": blob(data)}
    if len(data) > LARGE:
        digest = {"oid": sha256(data), "sha256": sha256(data)}
        found["lfs"] = {**digest, "size": len(data), "pointerSize": 134}
    return found
