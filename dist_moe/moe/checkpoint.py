"""A Hugging Face checkpoint as bytes: which tensor lies where in which safetensors file.

Export patches and verify compares these bytes, so neither ever holds a model, and what is not touched keeps every bit,
headers included. The safetensors layout is public: 8 bytes of header length, a JSON header, then the data.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dist_moe.errors import UserError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
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

    def bytes(self) -> np.ndarray:
        """The raw bytes, read lazily, uint8 [stop - start]."""
        if self.start == self.stop:
            return np.empty(0, np.uint8)
        return np.memmap(self.file, np.uint8, "r", offset=self.start, shape=(self.stop - self.start,))


def rows_per_expert(tensor: StoredTensor, num_dims: int, num_experts: int) -> int | None:
    """How many rows one expert has in a tensor of all E experts, which becomes a weight of `num_dims` dimensions.

    None: the first dimension is the experts'; a tensor of one dimension less is flat, [E * rows, ...].
    """
    return tensor.shape[0] // num_experts if len(tensor.shape) == num_dims - 1 else None


def expert_row(expert: int, rows: int | None) -> Row:
    """Where an expert lies in a tensor of all experts; `rows` as `rows_per_expert` says."""
    return expert if rows is None else slice(expert * rows, (expert + 1) * rows)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file. A file that is cut short or not safetensors is a `UserError`."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise UserError(f"{file}: not a complete safetensors file ({size} bytes): copy or download it again")
        try:
            header = json.loads(stream.read(length))
        except ValueError as error:
            raise UserError(f"{file}: its safetensors header is not readable: copy or download it again") from error
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, stop = (8 + length + offset for offset in entry["data_offsets"])
        if stop > size:
            raise UserError(f"{file}: tensor {name} ends at byte {stop}, but the file has {size}: it is cut short")
        tensors[name] = StoredTensor(file, entry["dtype"], tuple(entry["shape"]), start, stop)
    return tensors


def shard_files(path: Path) -> list[Path]:
    """The safetensors files of a model directory, in the order of their names."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise UserError(f"{path}: no *.safetensors file: expected a model in Hugging Face format")
    return files


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a model directory. A shard that its index names and that is not there is a `UserError`."""
    files = shard_files(path)
    index = path / "model.safetensors.index.json"
    if index.is_file():
        for name in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            if not (path / name).is_file():
                raise UserError(f"{index}: names the shard {name}, which is not there: copy or download it again")
    return {name: tensor for file in files for name, tensor in read_header(file).items()}


def model_hash(path: Path) -> str:
    """sha256 over config.json and every byte of the weights: two models with one different bit have two hashes."""
    total = hashlib.sha256()
    for file in (path / "config.json", *shard_files(path)):
        with file.open("rb") as stream:
            total.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()
