"""Deltas: what was trained of one base in a small safetensors file, which holds numbers and JSON only.

    __metadata__   digest, format, version, facts (JSON: about the training of the experts)
    NAME           an expert's or a dense tensor, with the name and data type that it has in the checkpoint
    NAME[5]        row 5 of a tensor that holds all experts of a layer

The digest is the SHA-256 of the whole file, with 64 zeros in place of the digest.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from dist_moe.errors import UserError, shown
from dist_moe.files import atomic_file, parse_json
from dist_moe.weights.changes import Change, trained_places
from dist_moe.weights.directory import read_header
from dist_moe.weights.facts import Facts
from dist_moe.weights.layout import HubLayout, Place

FORMAT, VERSION = "dist_moe delta", "3"
NO_DIGEST = "0" * 64
DIGEST = re.compile(r"[0-9a-f]{64}")


def write_delta(out: Path, layout: HubLayout, places: Iterable[Place], changes: Iterable[Change], facts: Facts) -> None:
    """Write the changes at `places`, in the base that `layout` describes, to the new file `out`.

    The header is written first; then the changes are written as they come, one at a time in memory.
    """
    header: dict[str, Any] = {
        "__metadata__": {"digest": NO_DIGEST, "format": FORMAT, "version": VERSION, "facts": json.dumps(asdict(facts))}
    }
    size = 0
    for place in places:
        tensor = place.of(layout.stored)
        stop = size + tensor.num_bytes
        header[str(place)] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [size, stop]}
        size = stop
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with atomic_file(out) as partial:
        with partial.open("wb") as stream:
            stream.write(len(encoded).to_bytes(8, "little") + encoded)
            stream.truncate(8 + len(encoded) + size)
        left = read_header(partial)
        for place, data in changes:
            left.pop(str(place)).overwrite(data)
        assert not left, f"no change for {min(left)}"
        digest = _digest(partial, NO_DIGEST)
        with partial.open("r+b") as stream:
            stream.seek(8 + encoded.index(NO_DIGEST.encode()))
            stream.write(digest.encode())


def read_facts(path: Path) -> Facts:
    """The facts of a delta, after verifying every byte.

    Raises:
        UserError: the file is missing, not a delta, of another version, damaged, or its facts are incomplete.
    """
    if not path.is_file():
        raise UserError(f"no delta file {path}: expected one that `dist-moe export RUN --delta` has written")
    advice = "copy or export it again"
    try:
        with safe_open(path, "np") as stream:
            metadata = stream.metadata() or {}
    except SafetensorError as error:
        raise UserError(f"{path}: not a complete safetensors file ({error}): {advice}") from None
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} is not a delta: its metadata does not say format '{FORMAT}'")
    if metadata.get("version") != VERSION:
        raise UserError(f"{path}: expected delta version {VERSION}, found {shown(metadata.get('version'))}")
    digest = metadata.get("digest", "")
    if not DIGEST.fullmatch(digest) or _digest(path, digest) != digest:
        raise UserError(f"{path} is damaged: its bytes do not match its digest; {advice}")
    return Facts.parse(parse_json(metadata.get("facts", ""), f"{path}: its facts"), f"{path}: facts", advice)


def delta_places(path: Path, facts: Facts, layout: HubLayout) -> list[Place]:
    """The places that a delta changes: complete experts of the union in its facts, and dense tensors if its facts say
    that such were trained. `layout` is that of the base.

    Raises:
        UserError: names the first tensor that is missing or was not to be trained.
    """
    may_move = frozenset[str]()
    if facts.trains != "experts":
        may_move = layout.dense(routers_only=facts.trains != "experts_and_dense")
        may_move -= layout.routers if facts.base_routers else frozenset()
    dense = sorted(read_header(path).keys() & may_move)
    found = read_header(path).keys() - may_move
    of_union = trained_places(layout, facts.union)
    expert_of = {str(place): expert for place, expert in of_union}
    for name in found:
        if name not in expert_of:
            raise UserError(
                f"{path}: {name} is no tensor of an expert that its facts name: it belongs to another model"
            )
    experts = {expert_of[name] for name in found}
    places = [place for place, expert in of_union if expert in experts]
    for place in places:
        if str(place) not in found:
            raise UserError(
                f"{path}: {place} is missing, and other tensors of the same expert are there: export it again"
            )
    if len(experts) != facts.num_trained_experts:
        raise UserError(
            f"{path}: {len(experts)} experts, and its facts say {facts.num_trained_experts}: export it again"
        )
    if len(dense) != facts.num_dense_tensors:
        raise UserError(
            f"{path}: {len(dense)} dense tensors, and its facts say {facts.num_dense_tensors}: export it again"
        )
    return places + [Place(name) for name in dense]


def delta_changes(path: Path, layout: HubLayout, places: Iterable[Place]) -> Iterator[Change]:
    """The changes in a delta, for the base that `layout` describes; `places` are those of `delta_places`."""
    tensors = read_header(path)
    for place in places:
        there, stored = place.of(layout.stored), tensors[str(place)]
        if (there.dtype, there.shape) != (stored.dtype, stored.shape):
            raise UserError(
                f"{path}: {place} is no {stored.dtype} {list(stored.shape)} of the base: it belongs to another model"
            )
        yield place, stored.bytes()


def _digest(path: Path, written: str) -> str:
    """SHA-256 of a delta whose header says the digest `written`."""
    with path.open("rb") as stream:
        length = stream.read(8)
        header = stream.read(int.from_bytes(length, "little"))
        total = hashlib.sha256(length + header.replace(written.encode(), NO_DIGEST.encode(), 1))
        return hashlib.file_digest(stream, lambda: total).hexdigest()
