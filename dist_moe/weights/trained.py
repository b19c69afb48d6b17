"""The trained experts of a run on disk, by layer and expert; export and evaluation read them.

    experts/index.json                    facts, each file's digest and experts, and its own digest
    experts/experts-<rank>.safetensors    <layer>.<expert>.<weight>

Every rank writes the experts it holds, so nothing is gathered. Experts that were never updated equal the base and are
not written. The directory gets its name when it is complete. Every byte is verified before anything is used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict

from dist_moe.artefacts import EXACT, read_sealed, write_sealed
from dist_moe.errors import UserError, shown
from dist_moe.files import writing
from dist_moe.weights.parts import DENSE, INDEX, DensePart, Expert, Part, TensorFacts, check_parts
from dist_moe.weights.parts_io import read_dense, read_part, write_part

FORMAT, VERSION = "dist_moe experts", 3
ADVICE = "restore it from a copy, or train again"


@dataclass(frozen=True, slots=True)
class _Index:
    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    facts: dict[str, Any]
    tensors: dict[str, TensorFacts]
    files: dict[str, Part]
    dense: DensePart | None = None


@dataclass(frozen=True, slots=True)
class TrainedExperts:
    """A run's trained experts; made by `TrainedExperts.open`, which compares every byte with the index."""

    path: Path
    digest: str
    """Digest of the index, and so of everything."""
    facts: dict[str, Any]
    """Facts about the training; docs/formats.md lists them."""
    tensors: dict[str, TensorFacts]
    """Data types and shapes of the tensors of each expert."""
    files: dict[str, Part]
    dense: DensePart | None = None
    """The file of the trained dense weights; None: none was trained."""

    @classmethod
    def open(cls, path: Path, *, every_byte: bool = True) -> TrainedExperts:
        """Read and check all, or without `every_byte` the index only.

        Raises:
            UserError: training has not ended there, or something has changed since; names the file and tensor.
        """
        if not (path / INDEX).is_file():
            raise UserError(f"{path}: no trained experts: expected {INDEX}; run training to its end first")
        index, digest = read_sealed(path / INDEX, FORMAT, VERSION, _Index, ADVICE)
        if every_byte:
            check_parts(path, index.files, index.tensors, ADVICE, index.dense)
        return cls(path, digest, index.facts, index.tensors, index.files, index.dense)

    @property
    def experts(self) -> list[Expert]:
        """(layer, expert) of all trained experts, sorted."""
        return sorted(key for part in self.files.values() for key in part.experts)

    def require_fits(self, num_layers: int, num_experts: int, shapes: Mapping[str, list[int]]) -> None:
        """Refuse a model to which these experts cannot belong.

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
        """Each expert and its weights by name, as in memory; one expert at a time."""
        for name, part in self.files.items():
            yield from read_part(self.path, name, part, self.tensors)

    @property
    def dense_names(self) -> list[str]:
        """Names of the trained dense weights, as in memory."""
        return sorted(self.dense.tensors) if self.dense else []

    def require_dense_fits(self, shapes: Mapping[str, Sequence[int]], routers: Collection[str]) -> None:
        """Refuse dense weights that this run has not trained, or that belong to another model.

        Args:
            shapes: those of the model's dense weights, by name.
            routers: names of those that are routers'.

        Raises:
            UserError: names the first that does not fit.
        """
        trains = self.facts.get("trains", "experts")
        trained = {} if trains == "experts" else shapes if trains == "experts_and_dense" else routers
        for name, facts in (self.dense.tensors if self.dense else {}).items():
            if name not in trained:
                raise UserError(
                    f"{self.path / DENSE}: {shown(name)} is no weight that a run with train.trains {trains} trains in "
                    f"this model: {ADVICE}"
                )
            if list(shapes[name]) != facts.shape:
                raise UserError(
                    f"{self.path / DENSE}: {name} is {facts.shape} there, and {list(shapes[name])} in the model: it "
                    f"belongs to another model; {ADVICE}"
                )

    def dense_weights(self) -> dict[str, torch.Tensor]:
        """The trained dense weights by name, as in memory."""
        return read_dense(self.path, self.dense)


def save_part(directory: Path, rank: int, experts: Mapping[Expert, Mapping[str, torch.Tensor]]) -> dict[str, Part]:
    """Write one rank's experts, which are in the host's memory; returns the file's name and contents, nothing if the
    rank has no experts."""
    if not experts:
        return {}
    name = f"experts-{rank:05d}.safetensors"
    with writing(directory / name):
        written = write_part(directory / name, experts)
    return {name: Part(**asdict(written), experts=[*experts])}


def save_index(
    directory: Path,
    parts: Mapping[str, Part],
    tensors: Mapping[str, TensorFacts],
    facts: Mapping[str, Any],
    dense: DensePart | None = None,
) -> None:
    """Write the index of all ranks' files; `tensors` are those of each expert."""
    write_sealed(directory / INDEX, FORMAT, VERSION, asdict(_Index(dict(facts), dict(tensors), dict(parts), dense)))
