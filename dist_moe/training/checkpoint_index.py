"""What a checkpoint's index says, and its verification, byte by byte; without torch, which takes seconds to import.

`dist_moe.training.checkpoint` describes the files, and writes them.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import Ge
from pydantic import ConfigDict

from dist_moe.artefacts import EXACT, OtherVersionError, read_sealed
from dist_moe.errors import UserError, shown
from dist_moe.training.state import TrainState
from dist_moe.weights.parts import INDEX, DensePart, Part, TensorFacts, check_parts

if TYPE_CHECKING:
    from dist_moe.parallel.mesh import Mesh
    from dist_moe.parallel.placement import Placement

FORMAT, VERSION = "dist_moe checkpoint", 4
OTHER_VERSION = (
    "another version of dist_moe wrote it: finish the run with that one, choose another run_dir, or set overwrite to "
    "start anew"
)
ADVICE = "the checkpoint is damaged"
STATE = ("master", "exp_avg", "exp_avg_sq", "step")
"""Tensors of one expert, and of one dense weight: those of `dist_moe.training.adam.AdamState`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Layout:
    """How the run was spread over ranks when a checkpoint was written. On the same layout it resumes with the same
    bits."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    engine: str
    num_ranks: Annotated[int, Ge(1)]
    ep_size: Annotated[int, Ge(1)]
    placement_hash: str

    @classmethod
    def of(cls, engine: str, mesh: Mesh, placement: Placement) -> Layout:
        return cls(engine, mesh.world.size, mesh.ep.size, placement.hash())

    def __str__(self) -> str:
        mesh = f"{self.num_ranks // self.ep_size} replica(s) of {self.ep_size} rank(s)"
        return f"engine {self.engine}, {mesh}, placement {self.placement_hash[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnedPart(Part):
    """One rank's file of a checkpoint."""

    num_owned: int
    """Number of experts whose optimizer state the rank keeps."""
    state_bytes: int
    """Memory of that optimizer state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Contents of index.json."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    state: TrainState
    layout: Layout
    facts: dict[str, Any]
    """What must be the same to resume the run."""
    schedule: dict[str, Any]
    """State of the learning-rate schedule."""
    metrics_sha256: str | None
    """SHA-256 of the run's metrics up to this step; None: unknown when it was saved."""
    tensors: dict[str, TensorFacts]
    """Names and shapes of the tensors of each expert."""
    files: dict[str, OwnedPart]
    """The files, in rank order."""
    dense: DensePart | None = None
    """The file of the dense weights; None: none was trained."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint whose every byte has been verified."""

    path: Path
    index: Index

    @property
    def step(self) -> int:
        """Number of finished steps."""
        return self.index.state.step

    @property
    def layout(self) -> Layout:
        """Layout of the ranks that wrote it."""
        return self.index.layout


def last_checkpoint(root: Path, facts: dict[str, Any]) -> Checkpoint | None:
    """The last undamaged checkpoint of a run, or None. A damaged one is skipped, with a message.

    Raises:
        UserError: the checkpoint is of a run with other facts (names the first that differs, and both values); or of
            another format version.
    """
    for path in reversed(checkpoint_directories(root)):
        try:
            found = read_checkpoint(path)
        except OtherVersionError:
            raise
        except UserError as error:
            log.info(f"{error}; the previous one is used")
            continue
        for key, here in facts.items():
            stored = found.index.facts.get(key)
            if stored != here:
                raise UserError(
                    f"{path} is of another run: {key} is {_short(stored)} there, {_short(here)} here; "
                    "restore it, choose another run_dir, or set overwrite to start again"
                )
        return found
    return None


def _short(value: object) -> str:
    return str(value) if len(str(value)) <= 80 else shown(value, 80)


def checkpoint_directories(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(root.glob("step-*"))


def read_index(path: Path) -> Index:
    """What a checkpoint says of itself.

    Raises:
        UserError: its index is damaged, or there is none.
    """
    return read_sealed(path / INDEX, FORMAT, VERSION, Index, ADVICE, OTHER_VERSION)[0]


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify every byte.

    Raises:
        UserError: it is damaged, or not a checkpoint.
    """
    index = read_index(path)
    check_parts(path, index.files, index.tensors, ADVICE, index.dense)
    names = {*STATE}
    if index.tensors and index.tensors.keys() != names:
        raise UserError(f"{path / INDEX}: tensors {sorted(index.tensors)}, expected {sorted(names)}: {ADVICE}")
    for tensor in index.dense.tensors if index.dense else ():
        if tensor.rpartition(".")[2] not in names:
            raise UserError(f"{path / INDEX}: {shown(tensor)} is no optimizer state: {ADVICE}")
    return Checkpoint(path, index)
