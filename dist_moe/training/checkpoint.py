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

import shutil
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from dist_moe.artefacts import write_sealed
from dist_moe.files import writing
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.shared_files import SharedDirectory
from dist_moe.training.adam import AdamState
from dist_moe.training.checkpoint_index import FORMAT, STATE, VERSION, Index, Layout, OwnedPart, checkpoint_directories
from dist_moe.training.on_host import on_host
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.state import TrainState
from dist_moe.weights.parts import INDEX, DensePart, TensorFacts
from dist_moe.weights.parts_io import write_dense, write_part

Parts = tuple[OwnedPart, DensePart | None]
"""What one rank has written."""


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
        changed, dense = optimizer.changed, [*(optimizer.dense.changed if comm.rank == 0 else ())]
        self._experts = dict(zip(changed, _on_host(map(optimizer.state_of, changed), copy=copy), strict=True))
        of_dense = _on_host((optimizer.dense.state[name] for name in dense), copy=copy)
        self._dense = {
            f"{name}.{field}": tensor
            for name, tensors in zip(dense, of_dense, strict=True)
            for field, tensor in tensors.items()
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


def _on_host(states: Iterable[AdamState], *, copy: bool) -> list[dict[str, torch.Tensor]]:
    found = on_host((tensor for state in states for tensor in state.tensors().values()), copy=copy)
    return [dict(zip(STATE, found[at : at + len(STATE)], strict=True)) for at in range(0, len(found), len(STATE))]
