"""Experts in safetensors files, one file a rank, as trained experts and checkpoints have them.

A tensor's name is `<layer>.<expert>.<name>`.
An index beside the files says of each file its digest and its experts, and once of what tensors an expert is made.
Files and index must agree exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import ConfigDict
from safetensors import safe_open

from dist_moe.artefacts import EXACT, Written, check_files
from dist_moe.errors import UserError, refused_by_library, shown
from dist_moe.moe.misfits import finite
from dist_moe.parallel.shared_files import write_tensors

INDEX = "index.json"
Expert = tuple[int, int]
"""Layer and expert."""
KEY = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Written):
    """One rank's file."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    experts: list[str]
    """"layer.expert" of those in the file."""

    @property
    def keys(self) -> list[Expert]:
        return [numbers(key) for key in self.experts]


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A tensor of each expert, such as "float32" [96, 32]."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    dtype: str
    shape: list[int]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorFacts:
        return cls(str(tensor.dtype).removeprefix("torch."), list(tensor.shape))

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def write_part(path: Path, experts: Mapping[Expert, Mapping[str, torch.Tensor]]) -> Written:
    """Write experts, by (layer, expert) and name; on disk when this returns."""
    tensors = {
        f"{layer}.{expert}.{name}": tensor
        for (layer, expert), parts in experts.items()
        for name, tensor in parts.items()
    }
    write_tensors(path, tensors)
    return Written.of(path)


def expert_keys(experts: Mapping[Expert, object]) -> list[str]:
    """`{(3, 17): ...}` -> `["3.17"]`."""
    return [f"{layer}.{expert}" for layer, expert in experts]


def numbers(key: str) -> Expert:
    """`"3.17"` -> `(3, 17)`."""
    layer, expert = key.split(".")
    return int(layer), int(expert)


def check_parts(directory: Path, parts: Mapping[str, Part], tensors: Mapping[str, TensorFacts], advice: str) -> None:
    """Compare every byte, and every tensor's name, type, shape and values, with what the index says.

    Raises:
        UserError: names the first file, and tensor, that is missing, too many, not as it was written, or not finite.
    """
    check_files(directory, parts, [INDEX], advice)
    seen: dict[str, str] = {}
    for name, part in parts.items():
        for key in part.experts:
            if not KEY.fullmatch(key):
                raise UserError(f"{directory / INDEX}: {shown(key)} is no LAYER.EXPERT: {advice}")
            if key in seen:
                raise UserError(f"{directory}: expert {key} is in {seen[key]} and in {name}: {advice}")
            seen[key] = name
        _check_tensors(
            directory / name, {f"{k}.{t}": facts for k in part.experts for t, facts in tensors.items()}, advice
        )


def _check_tensors(path: Path, expected: Mapping[str, TensorFacts], advice: str) -> None:
    with refused_by_library(f"{path} is no safetensors file", advice):
        stream = safe_open(path, "pt")
    with stream:
        names = set(stream.keys())
        for name in sorted(names ^ expected.keys()):
            what = "is missing" if name in expected else "is not one that its index names"
            raise UserError(f"{path}: tensor {name} {what}: {advice}")
        for name, facts in expected.items():
            tensor = stream.get_tensor(name)
            if TensorFacts.of(tensor) != facts:
                raise UserError(f"{path}: tensor {name} is {TensorFacts.of(tensor)}, expected {facts}: {advice}")
            if not finite(tensor):
                raise UserError(f"{path}: tensor {name} has NaN or infinite values: {advice}")


def read_part(directory: Path, name: str, part: Part) -> Iterator[tuple[Expert, dict[str, torch.Tensor]]]:
    """The experts of a file, one after the other: (layer, expert), and its tensors by name."""
    with safe_open(directory / name, "pt") as stream:
        names: dict[str, list[str]] = {}
        for key in stream.keys():  # noqa: SIM118 (not a dict)
            names.setdefault(key.rpartition(".")[0], []).append(key)
        for expert in sorted(part.experts, key=numbers):
            yield numbers(expert), {key.rpartition(".")[2]: stream.get_tensor(key) for key in names[expert]}
