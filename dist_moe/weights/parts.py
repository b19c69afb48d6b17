"""Experts in safetensors files, one file per rank, and dense weights in one file; used for trained experts and for
checkpoints.

An expert's tensor has the name `<layer>.<expert>.<name>`. An index beside the files has the digest and the experts of
each file, the names and shapes of an expert's tensors, and those of the dense ones. Files and index must agree exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import ConfigDict
from safetensors import safe_open

from dist_moe.artefacts import EXACT, Written, check_files
from dist_moe.errors import UserError, refused_by_library
from dist_moe.stats.names import expert_name
from dist_moe.weights.directory import read_header
from dist_moe.weights.finite import is_finite

if TYPE_CHECKING:
    import torch

INDEX, DENSE = "index.json", "dense.safetensors"
NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "BOOL": "bool",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
}
"""torch's names of the data types in a safetensors header."""
Expert = tuple[int, int]
"""Layer and expert."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part(Written):
    """One rank's file."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    experts: list[Expert]
    """The experts in the file."""


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """Data type and shape of a tensor, such as "float32" [96, 32]."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    dtype: str
    shape: list[int]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorFacts:
        return cls(str(tensor.dtype).removeprefix("torch."), list(tensor.shape))

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DensePart(Written):
    """The file of the dense weights."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    tensors: dict[str, TensorFacts]


def tensor_name(expert: Expert, name: str) -> str:
    """`(3, 17), "up"` -> `"3.17.up"`."""
    return f"{expert[0]}.{expert[1]}.{name}"


def check_parts(
    directory: Path,
    parts: Mapping[str, Part],
    tensors: Mapping[str, TensorFacts],
    advice: str,
    dense: DensePart | None = None,
) -> None:
    """Compare every byte, and every tensor's name, type, shape and values, with the index.

    Raises:
        UserError: names the first file or tensor that is missing, unexpected, changed, or not finite.
    """
    check_files(directory, {**parts, **({DENSE: dense} if dense else {})}, [INDEX], advice)
    if dense is not None:
        _check_tensors(directory / DENSE, dense.tensors, advice)
    seen: dict[Expert, str] = {}
    for name, part in parts.items():
        for expert in part.experts:
            if min(expert) < 0:
                raise UserError(f"{directory / INDEX}: {list(expert)} is no layer and expert: {advice}")
            if expert in seen:
                where = f"in {seen[expert]} and in {name}"
                raise UserError(f"{directory}: expert {expert_name(*expert)} is {where}: {advice}")
            seen[expert] = name
        _check_tensors(
            directory / name, {tensor_name(e, t): facts for e in part.experts for t, facts in tensors.items()}, advice
        )


def _check_tensors(path: Path, expected: Mapping[str, TensorFacts], advice: str) -> None:
    with refused_by_library(f"{path} is not a safetensors file", advice):
        safe_open(path, "np").__exit__(None, None, None)
    stored = read_header(path)
    for name in sorted(stored.keys() ^ expected.keys()):
        what = "is missing" if name in expected else "is not one that its index names"
        raise UserError(f"{path}: tensor {name} {what}: {advice}")
    for name, facts in expected.items():
        tensor = stored[name]
        found = TensorFacts(NAMES.get(tensor.dtype, tensor.dtype), list(tensor.shape))
        if found != facts:
            raise UserError(f"{path}: tensor {name} is {found}, expected {facts}: {advice}")
        if not is_finite(tensor.bytes(), tensor.dtype):
            raise UserError(f"{path}: tensor {name} has NaN or infinite values: {advice}")
