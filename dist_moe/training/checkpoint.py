"""Checkpoints of a training run: after each, the run can be killed and goes on with the same bits.

    checkpoints/step-00000040/index.json                   facts, layout, state, schedule; each file's digest, experts
    checkpoints/step-00000040/experts-<rank>.safetensors   <layer>.<expert>.<master | exp_avg | exp_avg_sq | step>

Every rank writes the experts it owns, so nothing is gathered, and any layout of ranks can read them. One that has left
the union is there with its weights, no moments and 0 steps. Experts that have never stepped are the base's and are not
written. The directory gets its name when it is complete. What a run knows beside its experts and the learning rate is
one value, `TrainState`.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

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
from dist_moe.training.optimizer import ExpertState, SelectiveAdamW
from dist_moe.training.state import TrainState
from dist_moe.weights.parts import INDEX, Part, TensorFacts, check_parts, read_part, write_part

FORMAT, VERSION = "dist_moe checkpoint", 4
OTHER_VERSION = (
    "another version of dist_moe wrote it: finish the run with that one, choose another run_dir, or set overwrite to "
    "start anew"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a run was spread when a checkpoint was written. On the same layout it goes on with the same bits."""

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
    """One rank's file of a checkpoint: its experts have stepped."""

    num_owned: int
    """Experts whose optimizer state the rank keeps."""
    state_bytes: int
    """Memory of that state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What a checkpoint says of itself."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    state: TrainState
    layout: Layout
    facts: dict[str, Any]
    """What determines the run."""
    schedule: dict[str, Any]
    """State of the learning rate schedule."""
    metrics_sha256: str | None
    """Of the run's metrics up to this step; None: the saver knew of none."""
    tensors: dict[str, TensorFacts]
    """What each expert's state is made of."""
    files: dict[str, OwnedPart]
    """In rank order."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint whose every byte was checked."""

    path: Path
    index: Index

    @property
    def step(self) -> int:
        """Steps that were done."""
        return self.index.state.step

    @property
    def layout(self) -> Layout:
        """Who wrote it."""
        return self.index.layout


class UnfinishedCheckpoint:
    """A checkpoint between a step's end, when its values are taken, and its name, which it gets when all have written.

    Called by all ranks together, as `publish` is. `write` is each rank's own, and may run in another thread while the
    next steps change the experts, if `copy` is set.
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
        """`metrics_sha256`: of the run's metrics up to this step, for the first rank."""
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
        self._experts = {
            key: {field.name: getattr(state, field.name).to("cpu", copy=copy) for field in fields(ExpertState)}
            for key in optimizer.changed
            for state in [optimizer.state_of(key)]
        }
        self._directory = SharedDirectory(root / f"step-{state.step:08}", comm)

    def write(self) -> OwnedPart:
        """This rank's file, on disk when it returns.

        Raises:
            UserError: the storage cannot be written.
        """
        path = self._directory.partial / self._file(self._comm.rank)
        with writing(path):
            return OwnedPart(
                **asdict(write_part(path, self._experts)),
                experts=[*self._experts],
                num_owned=self._num_owned,
                state_bytes=self._state_bytes,
            )

    def publish(self, part: Callable[[], OwnedPart], *, keep: int) -> Path:
        """Wait for what all ranks' `write` returned, `part`; then only the last `keep` checkpoints remain.

        Raises:
            UserError: on all ranks, if one of them has failed to write.
        """
        path, partial = self._directory.final, self._directory.partial
        with together(self._comm):
            mine = part()
        state = next(iter(self._experts.values()), {})
        found = self._comm.gather((mine, {name: TensorFacts.of(tensor) for name, tensor in state.items()}))
        files = {self._file(rank): part for rank, (part, _) in enumerate(found)}
        tensors = next((tensors for _, tensors in found if tensors), {})
        with together(self._comm), writing(path):
            if self._comm.rank == 0:
                index = replace(self._index, tensors=tensors, files=files)
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


def last_checkpoint(root: Path, facts: dict[str, Any]) -> Checkpoint | None:
    """The last good checkpoint of a run, or None. A damaged one is said and passed over.

    Raises:
        UserError: the checkpoint is of a run with other facts: names the first that differs, and both values; or
            another version of dist_moe wrote it.
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


def load_checkpoint(checkpoint: Checkpoint, optimizer: SelectiveAdamW, schedule: LRScheduler) -> None:
    """Put this rank's experts, whatever rank wrote them, and the schedule where they were.

    `optimizer` is one for the union of the checkpoint's mask revision.
    """
    held = {(layer.index, expert) for layer in optimizer.layers for expert in layer.local}
    for name, part in checkpoint.index.files.items():
        if not held.isdisjoint(part.experts):
            for key, tensors in read_part(checkpoint.path, name, part, checkpoint.index.tensors):
                if key in held:
                    optimizer.restore(key, tensors)
    schedule.load_state_dict(checkpoint.index.schedule)
    for group, lr in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = lr


def checkpoint_directories(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(root.glob("step-*"))


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint after a check of every byte; a damaged or foreign one is a `UserError`."""
    advice = "the checkpoint is damaged"
    index, _ = read_sealed(path / INDEX, FORMAT, VERSION, Index, advice, OTHER_VERSION)
    check_parts(path, index.files, index.tensors, advice)
    names = {field.name for field in fields(ExpertState)}
    if index.tensors and index.tensors.keys() != names:
        raise UserError(f"{path / INDEX}: tensors {sorted(index.tensors)}, expected {sorted(names)}: {advice}")
    return Checkpoint(path, index)
