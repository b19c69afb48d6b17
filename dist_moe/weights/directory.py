"""A Hugging Face checkpoint as bytes: which files are its weights, and which tensor lies where in them.

What `transformers.AutoModelForCausalLM.from_pretrained` reads is the checkpoint, and nothing else that lies beside it:
a leftover shard of an earlier save or a sidecar (value_head.safetensors, adapter_model.safetensors, ...) is not there
for anything in this package. Loading, hashing, exporting, describing and verifying all ask `weight_files`.

Export patches and verify compares bytes, so neither ever holds a model, and what is not touched keeps every bit,
headers included. The safetensors layout is public: 8 bytes of header length, a JSON header, then the data.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from dist_moe.errors import UserError, refused_by_library, shown

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
KEPT_HASH = ".dist_moe_hash.json"
"""What `dist_moe.weights.identity` keeps beside the weights; no part of the model."""
AGAIN = "copy or download it again"
EXPERT_NUMBER = re.compile(r"(?<=experts\.)\d+(?=\.)")
"""Where a tensor of one expert has the expert's number in its name."""
Row = int | slice
"""One row of a tensor's first dimension, or some in a row."""


def expert_number(name: str) -> int | None:
    """The expert in a checkpoint tensor's name; None: the tensor is not one expert's."""
    found = EXPERT_NUMBER.search(name)
    return int(found.group()) if found else None


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor in a file: bytes `start` to `stop` of the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def num_bytes(self) -> int:
        return self.stop - self.start

    def bytes(self) -> np.ndarray:
        """The raw bytes, read lazily, uint8 [num_bytes]."""
        if self.start == self.stop:
            return np.empty(0, np.uint8)
        return np.memmap(self.file, np.uint8, "r", offset=self.start, shape=(self.num_bytes,))

    def rows(self, row: Row) -> StoredTensor:
        """Some rows of the first dimension, as a tensor; one row alone has one dimension less."""
        size = self.num_bytes // self.shape[0]
        if isinstance(row, int):
            start, stop, shape = row, row + 1, self.shape[1:]
        else:
            start, stop, shape = row.start, row.stop, (row.stop - row.start, *self.shape[1:])
        return replace(self, shape=shape, start=self.start + start * size, stop=self.start + stop * size)

    def overwrite(self, data: np.ndarray) -> None:
        """Replace the bytes in the file by others, uint8 [num_bytes]."""
        assert len(data) == self.num_bytes, f"{self}: {len(data)} bytes do not fit"
        with self.file.open("r+b") as stream:
            stream.seek(self.start)
            stream.write(data.data)


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files that hold the weights of a model directory, by their names in it."""

    index: str | None
    shards: tuple[str, ...]
    """In the order in which they are read; a name may lead into a subdirectory."""
    weight_map: dict[str, str]
    """What the index says, tensor -> shard; nothing is read by it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Index and shards."""
        return self.shards if self.index is None else (self.index, *self.shards)


def has_weights(path: Path) -> bool:
    """Whether a model directory has any file of weights, complete or not."""
    return any(path.glob("*.safetensors"))


def weight_files(path: Path) -> WeightFiles:
    """The weights of a model directory as `from_pretrained` finds them, without a variant.

    That is the file, or the index, that `transformers_weights` in config.json names; else model.safetensors; else the
    shards that model.safetensors.index.json names. All other files are not read.

    Raises:
        UserError: there is none of them, or an index that transformers does not read, or that names a file which is not
            there or not inside the directory. A symbolic link is a file like any other.
    """
    named = read_json(path / CONFIG).get("transformers_weights") if os.path.isfile(path / CONFIG) else None
    if named is not None:
        first = _inside(path / CONFIG, named)
    else:
        first = next((name for name in (SINGLE, INDEX) if os.path.isfile(path / name)), SINGLE)
    if not os.path.isfile(path / first):
        expected = first if named is not None else f"{SINGLE} or {INDEX}"
        raise UserError(
            f"{path} has no *.safetensors file that transformers reads: expected {expected} beside config.json "
            "(pickled weights are not read; convert them with transformers' save_pretrained)"
        )
    if not first.endswith(".index.json"):
        return WeightFiles(None, (first,), {})
    index = path / first
    content = read_json(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not isinstance(content.get("metadata"), dict):
        raise UserError(
            f'{index}: expected an object {{"metadata": {{...}}, "weight_map": {{tensor: file, ...}}}}, as '
            f"transformers reads no other index: {AGAIN}"
        )
    shards = tuple(sorted({_inside(index, name) for name in weight_map.values()}))
    lost = [name for name in shards if not os.path.isfile(path / name)]
    if lost == list(shards):
        raise UserError(f"{path} has no *.safetensors file that {first} names ({shown(lost[0])}, ...): {AGAIN}")
    if lost:
        raise UserError(f"{index}: names the shard {shown(lost[0])}, which does not exist: {AGAIN}")
    return WeightFiles(first, shards, weight_map)


def _inside(where: Path, name: object) -> str:
    """A name of a file of weights in the directory of `where`, or below it."""
    if not isinstance(name, str) or not name.endswith((".safetensors", ".safetensors.index.json")):
        raise UserError(f"{where}: names {shown(name)} as a file of weights, expected NAME.safetensors: {AGAIN}")
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise UserError(f"{where}: names the file {shown(name)} outside of its directory, which is not read: {AGAIN}")
    return name


def read_json(file: Path) -> dict[str, Any]:
    """The one object that a JSON file of a model directory holds; anything else is a `UserError`."""
    with refused_by_library(f"{file}: not readable as JSON", AGAIN):
        value = json.loads(file.read_bytes())
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected a JSON object, found {shown(value)}: {AGAIN}")
    return value


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file, as the library takes them. A file that it refuses is a `UserError`."""
    damaged = f"{file}: not a complete safetensors file: cut short or damaged"
    with refused_by_library(f"{file}: cannot be read", AGAIN, (OSError,)), file.open("rb") as stream:
        with refused_by_library(damaged, AGAIN, (SafetensorError, OSError)):
            safe_open(file, "np").__exit__(None, None, None)  # checks the whole header against the file's size
        length = int.from_bytes(stream.read(8), "little")
        content = stream.read(length)
    tensors = {}
    for name, entry in json.loads(content, object_pairs_hook=list):
        if name == "__metadata__":
            continue
        fields = dict(entry)
        if name in tensors:
            raise UserError(f"{file}: tensor {shown(name)} occurs twice: {AGAIN}")
        start, stop = (8 + length + offset for offset in fields["data_offsets"])
        tensors[name] = StoredTensor(file, fields["dtype"], tuple(fields["shape"]), start, stop)
    return tensors


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a model directory, as `from_pretrained` sees them.

    transformers takes from an index the names of the files only, and reads all that is in these, in the order of their
    names. So a tensor that the index gives to a shard without it is where it is found, or missing; and of two tensors
    of one name the later file's counts, whatever the index says.
    """
    files = weight_files(path).shards
    return {name: tensor for file in files for name, tensor in read_header(path / file).items()}


def model_hash(path: Path) -> str:
    """sha256 over config.json and every byte of the weights: two models with one different bit have two hashes."""
    total = hashlib.sha256()
    for name in (CONFIG, *weight_files(path).shards):
        with (
            refused_by_library(f"{path / name}: cannot be read", AGAIN, (OSError,)),
            (path / name).open("rb") as stream,
        ):
            digest = hashlib.file_digest(stream, "sha256").digest()
        total.update(name.encode() + digest)
    return total.hexdigest()
