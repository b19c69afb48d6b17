"""What writer and reader of a mask store agree on: names, version, digests, and text as arrays.

Digests are over the stored files, not the decoded values: damage is found before any decoder sees it, a chunk that is
missing (which Zarr would read as zeros) counts as damage, and hashing compressed bytes is the faster way.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dist_moe.files import hash_file

FORMAT = "dist_moe.masks"
VERSION = 1
ROOT_METADATA = "zarr.json"


def array_files(directory: Path) -> Iterator[Path]:
    """The files of one array (metadata and shards) in a fixed order, without a file system's hidden ones."""
    files = (path for path in directory.rglob("*") if path.is_file() and not path.name.startswith("."))
    return iter(sorted(files, key=lambda path: path.relative_to(directory).as_posix()))


def array_digest(directory: Path) -> str:
    """SHA-256 over the names and bytes of an array's files; of a missing array, that of no files."""
    digest = hashlib.sha256()
    for path in array_files(directory):
        digest.update(f"{path.relative_to(directory).as_posix()}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


def root_digest(root: dict[str, Any], array_digests: object) -> str:
    """SHA-256 over the root metadata but its completeness marker, and over the arrays' digests.

    So it covers the whole store.
    """
    attributes = {name: value for name, value in root["attributes"].items() if name != "complete"}
    text = json.dumps([root | {"attributes": attributes}, array_digests], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def statistic_array(name: str) -> str:
    """The array that holds a statistic; the prefix keeps a statistic's name from being that of another array."""
    return f"statistic_{name}"


def encode_texts(texts: Sequence[str]) -> np.ndarray:
    """Strings as the bytes of one JSON list, uint8 [num_bytes]: Zarr v3 has no settled data type for text."""
    return np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)


def decode_texts(data: np.ndarray) -> tuple[str, ...]:
    """The strings of `encode_texts`."""
    return tuple(json.loads(data.tobytes()))
