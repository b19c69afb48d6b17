"""Writes and reads the files that `dist_moe.weights.parts` describes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open

from dist_moe.artefacts import Written
from dist_moe.parallel.shared_files import write_tensors
from dist_moe.weights.parts import DENSE, DensePart, Expert, Part, TensorFacts, tensor_name


def write_dense(directory: Path, tensors: Mapping[str, torch.Tensor]) -> DensePart | None:
    """Write dense tensors by name; the file is on disk when this returns. None: there are none, and no file."""
    if not tensors:
        return None
    write_tensors(directory / DENSE, dict(tensors))
    facts = {name: TensorFacts.of(tensor) for name, tensor in tensors.items()}
    return DensePart(**asdict(Written.of(directory / DENSE)), tensors=facts)


def read_dense(directory: Path, part: DensePart | None) -> dict[str, torch.Tensor]:
    """The tensors that `write_dense` was given."""
    if part is None:
        return {}
    with safe_open(directory / DENSE, "pt") as stream:
        return {name: stream.get_tensor(name) for name in part.tensors}


def write_part(path: Path, experts: Mapping[Expert, Mapping[str, torch.Tensor]]) -> Written:
    """Write experts, given by (layer, expert) and name; the file is on disk when this returns."""
    write_tensors(path, {tensor_name(e, name): row for e, rows in experts.items() for name, row in rows.items()})
    return Written.of(path)


def read_part(
    directory: Path, name: str, part: Part, tensors: Iterable[str]
) -> Iterator[tuple[Expert, dict[str, torch.Tensor]]]:
    """The experts of a file in turn: (layer, expert), and their tensors by name."""
    with safe_open(directory / name, "pt") as stream:
        for expert in sorted(part.experts):
            yield expert, {tensor: stream.get_tensor(tensor_name(expert, tensor)) for tensor in tensors}
