"""Identifies the bytes that rows are read from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from dist_moe.data.suites import suite_of
from dist_moe.files import hash_file
from dist_moe.hub.datasets import dataset_directory
from dist_moe.hub.names import dataset_of


def sources_hash(paths: Sequence[Path]) -> str | None:
    """SHA-256 of all bytes of files and directories, of a dataset of the hub that of its commit, and of their names.

    None: a file is not there or cannot be read; reading its rows says so.
    """
    found = list[object]()
    for path in paths:
        named = dataset_of(str(path))
        if named is not None:
            found.append([str(path), dataset_directory(named, str(path)).name])
            continue
        suite = suite_of(path)
        place = path if suite is None else suite[1]
        try:
            files = sorted(file for file in place.rglob("*") if file.is_file()) if place.is_dir() else [place]
            found.append([str(path), [[str(file.relative_to(place)), hash_file(file)] for file in files]])
        except OSError:
            return None
    return sha256(json.dumps(found).encode()).hexdigest()
