"""Names, versions, digests and text encoding, on which writer and reader of stores agree.

Digests are of the stored files, not of the decoded values. So damage is found before anything is decoded, and a missing
file (which Zarr would read as zeros) counts as damage. Digests form a tree, so that reading a batch needs the root, one
list and one file: zarr.json has the digests of itself and of each array's list, and a list has those of the files.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_moe.store.source import Source


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of store: counts or masks."""

    format: str
    version: int
    name: str
    """Name in messages."""


MASKS = Kind("dist_moe.masks", 3, "mask store")
COUNTS = Kind("dist_moe.counts", 1, "counts store")
ROOT_METADATA = "zarr.json"
SUMS = "SHA256SUMS"
WRITING = ".writing"
FACTS = f"{WRITING}/facts.json"


def batches_per_file(num_batches: int) -> int:
    """How many batches share a file of each array: the smallest power of two, at least 64, that needs at most 128
    files."""
    rows = 64
    while 128 * rows < num_batches:
        rows *= 2
    return min(rows, max(1, num_batches))


def sha256(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sums_text(sums: Mapping[str, str]) -> bytes:
    """Digests by file name in the format of `sha256sum`, sorted by name."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()


def parse_sums(data: bytes) -> dict[str, str]:
    """The digests in `sums_text`, by file name."""
    lines = (line.partition("  ") for line in data.decode(errors="replace").splitlines())
    return {name: digest for digest, _, name in lines}


def stored_sums(source: Source, array: str, digest: str) -> dict[str, str] | None:
    """The digests of an array's files, from its list; None if the list does not have this digest."""
    data = source.read(f"{array}/{SUMS}")
    return parse_sums(data) if data is not None and sha256(data) == digest else None


def root_digest(root: dict[str, Any], array_digests: object) -> str:
    """SHA-256 of the root metadata without `complete`, and of the arrays' digests; so it covers the whole store."""
    attributes = {name: value for name, value in root["attributes"].items() if name != "complete"}
    return sha256(json.dumps([root | {"attributes": attributes}, array_digests], sort_keys=True).encode())


def statistic_array(name: str) -> str:
    """Name of the array with a statistic; the prefix keeps it different from other arrays."""
    return f"statistic_{name}"


def prompt_array(name: str) -> str:
    """Name of the array with a measurement: `counts`, `tokens` or a further table."""
    return f"prompt_{name}"


def encode_texts(texts: Sequence[str]) -> np.ndarray:
    """Strings as the bytes of a JSON list, uint8 [num_bytes]: Zarr v3 has no standard type for text."""
    return np.frombuffer(json.dumps(list(texts)).encode(), np.uint8)


def decode_texts(data: np.ndarray) -> tuple[str, ...] | None:
    """The strings of `encode_texts`; None if the bytes are something else."""
    try:
        texts = json.loads(data.tobytes())
    except (ValueError, RecursionError):
        return None
    return tuple(texts) if isinstance(texts, list) and {*map(type, texts)} <= {str} else None
