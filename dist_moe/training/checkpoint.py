"""Checkpoints of a training run, from which a killed run resumes with the same bits.

    checkpoints/step-00000040/index.json                   facts, layout, state, schedule; each file's digest, experts
    checkpoints/step-00000040/experts-<rank>.safetensors   <layer>.<expert>.<master | exp_avg | exp_avg_sq | step>
    checkpoints/step-00000040/dense.safetensors            <name>.<master | exp_avg | exp_avg_sq | step>, if trained

Every rank writes the experts it owns, so nothing is gathered, and any layout of ranks can read them. An expert that has
left the union is stored with its weights, no moments and 0 steps. Experts that were never updated equal the base and
are not written. The directory gets its name when it is complete. All other state of a run, except the learning-rate
schedule, is one value, `TrainState`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from pydantic import ConfigDict
from torch.optim.lr_scheduler import LRScheduler

from dist_moe.artefacts import EXACT, OtherVersionError, read_sealed, write_sealed
from dist_moe.errors import UserError, shown
from dist_moe.files import writing
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import Placement
from dist_moe.parallel.shared_files import SharedDirectory
from dist_moe.training.adam import AdamState
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.state import TrainState
from dist_moe.weights.parts import (
    INDEX,
    DensePart,
    Part,
    TensorFacts,
    check_parts,
    write_dense,
    write_part,
)

FORMAT, VERSION = "dist_moe checkpoint", 4
OTHER_VERSION = (
    "another version of dist_moe wrote it: finish the run with that one, choose another run_dir, or set overwrite to "
    "start anew"
)

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


Parts = tuple[OwnedPart, DensePart | None]
"""What one rank has written."""


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


class UnfinishedCheckpoint:
    """A checkpoint that is being written: from the end of a step until all ranks have written their part.

    Created and published by all ranks together. `write` is each rank's own, and with `copy` may run in another thread
    while the next steps change the experts.
    """

    def __init__(
        self,
        root: Path,
        state: TrainState,
        optimizer: SelectiveAdamW,
        schedule: LRScheduler,
        comm: Comm,
        facts: dict[str, Any],
        layout: Layout,
        metrics_sha256: str | None,
        *,
        copy: bool,
    ) -> None:
        """`metrics_sha256`: SHA-256 of the run's metrics up to this step; used on rank 0."""
        self._comm = comm
        self._index = Index(
            state=state,
            layout=layout,
            facts=facts,
            schedule=deepcopy(schedule.state_dict()),
            metrics_sha256=metrics_sha256,
            tensors={},
            files={},
        )
        self._num_owned, self._state_bytes = len(optimizer.expert_state), optimizer.state_bytes
        self._experts = {key: _on_cpu(optimizer.state_of(key), copy=copy) for key in optimizer.changed}
        self._dense = {
            f"{name}.{field}": tensor
            for name in (optimizer.dense.changed if comm.rank == 0 else ())
            for field, tensor in _on_cpu(optimizer.dense.state[name], copy=copy).items()
        }
        self._directory = SharedDirectory(root / f"step-{state.step:08}", comm)

    def write(self) -> Parts:
        """Write this rank's file, and on the first rank that of the dense weights; they are on disk when this returns.

        Raises:
            UserError: the storage cannot be written.
        """
        path = self._directory.partial / self._file(self._comm.rank)
        with writing(path):
            mine = OwnedPart(
                **asdict(write_part(path, self._experts)),
                experts=[*self._experts],
                num_owned=self._num_owned,
                state_bytes=self._state_bytes,
            )
            return mine, write_dense(self._directory.partial, self._dense)

    def publish(self, parts: Callable[[], Parts], *, keep: int) -> Path:
        """Give the directory its name; `parts` gives what this rank's `write` returned. Then delete all but the last
        `keep` checkpoints.

        Raises:
            UserError: on all ranks: one of them has failed to write.
        """
        path, partial = self._directory.final, self._directory.partial
        with together(self._comm):
            mine, dense = parts()
        state = next(iter(self._experts.values()), {})
        found = self._comm.gather((mine, {name: TensorFacts.of(tensor) for name, tensor in state.items()}))
        files = {self._file(rank): part for rank, (part, _) in enumerate(found)}
        tensors = next((tensors for _, tensors in found if tensors), {})
        with together(self._comm), writing(path):
            if self._comm.rank == 0:
                index = replace(self._index, tensors=tensors, files=files, dense=dense)
                write_sealed(partial / INDEX, FORMAT, VERSION, asdict(index))
        self._directory.publish()
        with together(self._comm), writing(path.parent):
            if self._comm.rank == 0:
                for old in checkpoint_directories(path.parent)[:-keep]:
                    shutil.rmtree(old)
        return path

    @staticmethod
    def _file(rank: int) -> str:
        return f"experts-{rank:05d}.safetensors"


def _on_cpu(state: AdamState, *, copy: bool) -> dict[str, torch.Tensor]:
    return {field.name: getattr(state, field.name).to("cpu", copy=copy) for field in fields(AdamState)}


def last_checkpoint(root: Path, facts: dict[str, Any]) -> Checkpoint | None:
    """The last undamaged checkpoint of a run, or None. A damaged one is skipped, with a message.

    Raises:
        UserError: the checkpoint is of a run with other facts (names the first that differs, and both values); or of
            another
            format version.
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


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify every byte.

    Raises:
        UserError: it is damaged, or not a checkpoint.
    """
    advice = "the checkpoint is damaged"
    index, _ = read_sealed(path / INDEX, FORMAT, VERSION, Index, advice, OTHER_VERSION)
    check_parts(path, index.files, index.tensors, advice, index.dense)
    names = {field.name for field in fields(AdamState)}
    if index.tensors and index.tensors.keys() != names:
        raise UserError(f"{path / INDEX}: tensors {sorted(index.tensors)}, expected {sorted(names)}: {advice}")
    for tensor in index.dense.tensors if index.dense else ():
        if tensor.rpartition(".")[2] not in names:
            raise UserError(f"{path / INDEX}: {shown(tensor)} is no optimizer state: {advice}")
    return Checkpoint(path, index)
