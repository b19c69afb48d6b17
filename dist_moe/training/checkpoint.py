"""Checkpoints of a training run: after each, the run can be killed and goes on with the same bits.

    checkpoints/step-00000040/index.json                   facts, layout, step, schedule; each file's SHA-256, experts
    checkpoints/step-00000040/experts-<rank>.safetensors   <layer>.<expert>.<master | exp_avg | exp_avg_sq | step>

Every rank writes the experts it owns, so nothing is gathered, and any layout of ranks can read them. Experts that have
never stepped are the base's and are not written. The directory gets its name when it is complete. Data order has no
state (it follows from seed and step), and nothing in a step draws random numbers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch.optim.lr_scheduler import LRScheduler

from dist_moe.errors import UserError
from dist_moe.files import hash_file, writing
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.shared_files import SharedDirectory, write_tensors
from dist_moe.training.optimizer import ExpertState, SelectiveAdamW

FORMAT, VERSION = "dist_moe checkpoint", 2
INDEX = "index.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint whose every byte was checked."""

    path: Path
    index: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps that were done."""
        return int(self.index["step"])

    @property
    def layout(self) -> Layout:
        return Layout(**self.index["layout"])

    @property
    def parts(self) -> dict[str, Part]:
        """File name -> what is in it, in rank order."""
        return {name: Part(**part) for name, part in self.index["files"].items()}


@dataclass(frozen=True, slots=True)
class Layout:
    """How a run was spread when a checkpoint was written. On the same layout it goes on with the same bits."""

    engine: str
    num_ranks: int
    ep_size: int
    placement_hash: str

    def __str__(self) -> str:
        mesh = f"{self.num_ranks // self.ep_size} replica(s) of {self.ep_size} rank(s)"
        return f"engine {self.engine}, {mesh}, placement {self.placement_hash[:12]}"


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's file of a checkpoint, as the index has it."""

    sha256: str
    experts: list[str]
    """"layer.expert" of those in the file: they have stepped."""
    num_owned: int
    """Experts whose optimizer state the rank keeps."""
    state_bytes: int
    """Memory of that state."""


class UnfinishedCheckpoint:
    """A checkpoint between a step's end, when its values are taken, and its name, which it gets when all have written.

    Called by all ranks together, as `publish` is. `write` is each rank's own, and may run in another thread while the
    next steps change the experts, if `copy` is set.
    """

    def __init__(
        self,
        root: Path,
        step: int,
        optimizer: SelectiveAdamW,
        schedule: LRScheduler,
        comm: Comm,
        facts: dict[str, Any],
        layout: Layout,
        *,
        copy: bool,
    ) -> None:
        self._comm = comm
        self._index = {
            "format": FORMAT,
            "version": VERSION,
            "step": step,
            "layout": asdict(layout),
            "facts": facts,
            "schedule": deepcopy(schedule.state_dict()),
        }
        stepped = {key: state for key, state in optimizer.expert_state.items() if state.step > 0}
        self._experts = [f"{layer}.{expert}" for layer, expert in stepped]
        self._num_owned, self._state_bytes = len(optimizer.expert_state), optimizer.state_bytes
        self._tensors = {
            f"{layer}.{expert}.{field.name}": getattr(state, field.name).to("cpu", copy=copy)
            for (layer, expert), state in stepped.items()
            for field in fields(state)
        }
        self._directory = SharedDirectory(root / f"step-{step:08}", comm)

    def write(self) -> Part:
        """This rank's file, on disk when it returns.

        Raises:
            UserError: the storage cannot be written.
        """
        path = self._directory.partial / self._file(self._comm.rank)
        with writing(path):
            write_tensors(path, self._tensors)
            return Part(hash_file(path), self._experts, self._num_owned, self._state_bytes)

    def publish(self, part: Callable[[], Part], *, keep: int) -> Path:
        """Wait for what all ranks' `write` returned, `part`; then only the last `keep` checkpoints remain.

        Raises:
            UserError: on all ranks, if one of them has failed to write.
        """
        path, partial = self._directory.final, self._directory.partial
        with together(self._comm):
            mine = part()
        files = {self._file(rank): asdict(part) for rank, part in enumerate(self._comm.gather(mine))}
        with together(self._comm), writing(path):
            if self._comm.rank == 0:
                (partial / INDEX).write_text(json.dumps({**self._index, "files": files}, indent=1), encoding="utf-8")
        self._directory.publish()
        with together(self._comm), writing(path.parent):
            if self._comm.rank == 0:
                for old in checkpoint_directories(path.parent)[:-keep]:
                    shutil.rmtree(old)
        return path

    @staticmethod
    def _file(rank: int) -> str:
        return f"experts-{rank:05d}.safetensors"


def last_checkpoint(root: Path, facts: dict[str, Any], say: Callable[[str], None]) -> Checkpoint | None:
    """The last good checkpoint of a run, or None. A damaged one is said and passed over.

    Raises:
        UserError: the checkpoint is of a run with other facts: names the first that differs, and both values.
    """
    for path in reversed(checkpoint_directories(root)):
        try:
            found = read_checkpoint(path)
        except UserError as error:
            say(f"{error}; the one before it is used")
            continue
        for key, here in facts.items():
            stored = found.index["facts"].get(key)
            if stored != here:
                raise UserError(
                    f"{path} is of another run: {key} is {stored} there, {here} here; restore it, choose another "
                    "run_dir, or set overwrite to start anew"
                )
        return found
    return None


def load_checkpoint(checkpoint: Checkpoint, optimizer: SelectiveAdamW, schedule: LRScheduler) -> None:
    """Put this rank's experts, whatever rank wrote them, and the schedule where they were."""
    for name, part in checkpoint.parts.items():
        mine = [key for key in part.experts if _numbers(key) in optimizer.replica_of]
        if not mine:
            continue
        with safe_open(checkpoint.path / name, "pt") as stream:
            for key in mine:
                tensors = {field.name: stream.get_tensor(f"{key}.{field.name}") for field in fields(ExpertState)}
                optimizer.restore(_numbers(key), tensors)
    schedule.load_state_dict(checkpoint.index["schedule"])
    for group, lr in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = lr


def checkpoint_directories(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(root.glob("step-*"))


def _numbers(key: str) -> tuple[int, int]:
    layer, expert = key.split(".")
    return int(layer), int(expert)


def read_checkpoint(path: Path) -> Checkpoint:
    """A checkpoint after a check of every byte; a damaged or foreign one is a `UserError`."""
    try:
        index: dict[str, Any] = json.loads((path / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path}: its {INDEX} is not readable: the checkpoint is damaged") from None
    if (index.get("format"), index.get("version")) != (FORMAT, VERSION):
        raise UserError(f"{path / INDEX}: expected format '{FORMAT}' version {VERSION}: it is no checkpoint of ours")
    for name, part in index["files"].items():
        if not (path / name).is_file() or hash_file(path / name) != part["sha256"]:
            raise UserError(f"{path / name}: not as it was written: the checkpoint is damaged")
    return Checkpoint(path, index)
