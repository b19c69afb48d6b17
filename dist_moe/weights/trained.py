"""The trained experts of a run, keyed by layer and expert: what export and evaluation read.

    experts/index.json                    what they are of, each file's digest and experts, and its own digest
    experts/experts-<rank>.safetensors    <layer>.<expert>.<weight>

Every rank writes the experts it holds, so nothing is gathered. Experts that never stepped equal the base and are not
written. The directory gets its name when it is complete. Nothing in it is used before every byte was compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict

from dist_moe.artefacts import EXACT, read_sealed, write_sealed
from dist_moe.errors import UserError
from dist_moe.files import writing
from dist_moe.weights.parts import INDEX, Expert, Part, TensorFacts, check_parts, read_part, write_part

FORMAT, VERSION = "dist_moe experts", 3
ADVICE = "restore it from a copy, or train again"


@dataclass(frozen=True, slots=True)
class _Index:
    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    facts: dict[str, Any]
    tensors: dict[str, TensorFacts]
    files: dict[str, Part]


@dataclass(frozen=True, slots=True)
class TrainedExperts:
    """A run's trained experts, every byte of which was compared with its index; made by `TrainedExperts.open`."""

    path: Path
    digest: str
    """Of the index, and so of everything."""
    facts: dict[str, Any]
    """What they were trained from and how, docs/formats.md lists it."""
    tensors: dict[str, TensorFacts]
    """What each expert is made of."""
    files: dict[str, Part]

    @classmethod
    def open(cls, path: Path) -> TrainedExperts:
        """Read and check all.

        Raises:
            UserError: training has not ended there, or something has changed since; names the file and tensor.
        """
        if not (path / INDEX).is_file():
            raise UserError(f"{path}: no trained experts: expected {INDEX}; run training to its end first")
        index, digest = read_sealed(path / INDEX, FORMAT, VERSION, _Index, ADVICE)
        check_parts(path, index.files, index.tensors, ADVICE)
        return cls(path, digest, index.facts, index.tensors, index.files)

    @property
    def experts(self) -> list[Expert]:
        """(layer, expert) of all, sorted."""
        return sorted(key for part in self.files.values() for key in part.experts)

    def require_fits(self, num_layers: int, num_experts: int, shapes: Mapping[str, list[int]]) -> None:
        """Refuse a model that these experts cannot be of: other layers, experts a layer, or shapes of one's weights.

        Raises:
            UserError: names the first expert or tensor that does not fit.
        """
        found = {name: facts.shape for name, facts in self.tensors.items()}
        for name in sorted(found.keys() | shapes.keys()):
            if found.get(name) != shapes.get(name):
                raise UserError(
                    f"{self.path}: an expert's {name} is {found.get(name)} there, and {shapes.get(name)} in the model: "
                    f"they belong to another model; {ADVICE}"
                )
        for layer, expert in self.experts:
            if layer >= num_layers or expert >= num_experts:
                raise UserError(
                    f"{self.path}: expert {layer}.{expert} is not one of the model's {num_layers} x {num_experts}: "
                    f"they belong to another model; {ADVICE}"
                )

    def weights(self) -> Iterator[tuple[Expert, dict[str, torch.Tensor]]]:
        """Each expert and its weights by name, as they lie in memory; one expert at a time, file by file."""
        for name, part in self.files.items():
            yield from read_part(self.path, name, part, self.tensors)


def save_part(directory: Path, rank: int, experts: Mapping[Expert, Mapping[str, torch.Tensor]]) -> dict[str, Part]:
    """Write one rank's experts; the file's name and what is in it, or nothing if the rank has none."""
    if not experts:
        return {}
    name = f"experts-{rank:05d}.safetensors"
    cpu = {key: {n: row.cpu().contiguous().clone() for n, row in rows.items()} for key, rows in experts.items()}
    with writing(directory / name):
        written = write_part(directory / name, cpu)
    return {name: Part(**asdict(written), experts=[*experts])}


def save_index(
    directory: Path, parts: Mapping[str, Part], tensors: Mapping[str, TensorFacts], facts: Mapping[str, Any]
) -> None:
    """Write the index of all ranks' files; `tensors` is what each expert is made of."""
    write_sealed(directory / INDEX, FORMAT, VERSION, asdict(_Index(dict(facts), dict(tensors), dict(parts))))
