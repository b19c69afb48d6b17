"""Compares the memory of a training run with its plan, and writes both to plan.json in the run directory."""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from dist_moe.config.attention import masks_rows
from dist_moe.config.objective import needs_base, pair_terms
from dist_moe.config.schema import Config
from dist_moe.data.batches import BatchPlan
from dist_moe.errors import UserError
from dist_moe.files import write_text_atomic, writing
from dist_moe.parallel.launch import together
from dist_moe.parallel.mesh import Mesh
from dist_moe.planning.live import LiveBytes
from dist_moe.planning.memory import Memory, Setup, training_memory
from dist_moe.planning.outline import Outline, recognised
from dist_moe.planning.share import of_masks
from dist_moe.planning.trace import outline_of_path
from dist_moe.report.plan import compared_line
from dist_moe.training.split import Split
from dist_moe.weights.directory import CONFIG
from dist_moe.workflows.run_dir import RunDir
from dist_moe.workflows.train_given import Given
from dist_moe.workflows.train_parts import Parts

log = logging.getLogger(__name__)

LARGE = 10**9
"""Bytes of a model's weights from which on `train.plan: auto` is on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Bytes on one rank's device."""

    weights: int
    gradients: int
    state: int
    originals: int
    activations: int | None
    """The most that there was beside these. None: it cannot be measured, where FSDP shards weights on a CPU."""

    @property
    def total(self) -> int | None:
        if self.activations is None:
            return None
        return self.weights + self.gradients + self.state + self.originals + self.activations


class MemoryWatch:
    """Context manager around each step, on all ranks together. On a CPU it measures the first one, on a GPU all."""

    def __init__(self, config: Config, work: RunDir, given: Given, parts: Parts, mesh: Mesh) -> None:
        self._config, self._work, self._given, self._parts, self._mesh = config, work, given, parts, mesh
        item = given.model.layers[0].bank["down_proj"].element_size()
        is_large = given.model.num_parameters * item >= LARGE
        self._is_on = config.train.plan == "always" or (config.train.plan == "auto" and is_large)
        self._on_gpu = mesh.world.device.type == "cuda"
        self._live = LiveBytes()
        self._has_measured = False
        self._inside = ExitStack()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()

    def __enter__(self) -> None:
        sharded = self._parts.engine.is_sharded
        if self._is_on and not self._has_measured and not (self._on_gpu or sharded):
            self._inside.enter_context(self._live)

    def __exit__(self, *error: Any) -> None:
        self._inside.close()
        if self._is_on and not self._has_measured and error[0] is None:
            self._has_measured = True
            self._write("first step")

    def finish(self) -> None:
        """After the last step."""
        if self._is_on and self._has_measured and self._on_gpu:
            self._write("all steps")

    def _write(self, of: str) -> None:
        comm = self._mesh.world
        with together(comm), writing(self._work.plan):
            measured = comm.gather(self._measured())
            predicted = self._predicted() if comm.rank == 0 else []
            if predicted:
                device = torch.cuda.get_device_name() if self._on_gpu else "cpu"
                ranks = [
                    {
                        "predicted": asdict(plan) | {"total": plan.total},
                        "measured": asdict(seen) | {"total": seen.total},
                    }
                    for plan, seen in zip(predicted, measured, strict=True)
                ]
                text = json.dumps({"device": device, "measured": of, "ranks": ranks}, indent=1)
                write_text_atomic(self._work.plan, text + "\n")
                log.info(compared_line([plan.total for plan in predicted], [seen.total for seen in measured], of))

    def _predicted(self) -> list[Memory]:
        """Nothing where the model cannot be planned, which is no reason to end its training."""
        try:
            return _predicted(self._config, self._given, self._mesh, self._parts.rows.split)
        except UserError as error:
            log.warning(f"No plan to compare with: {error}")
            return []

    def _measured(self) -> Measured:
        model, optimizer, engine = self._given.model, self._parts.optimizer, self._parts.engine
        banks = sum(weight.nbytes for layer in model.layers for weight in layer.bank.values())
        dense = sum(tensor.nbytes for _, tensor in engine.dense())
        gradients = optimizer.gradient_bytes
        state = optimizer.state_bytes if optimizer.state_device.type == self._mesh.world.device.type else 0
        originals = 0 if model.originals is None else model.originals.num_bytes
        there = banks + dense + gradients + state + originals
        activations: int | None = self._live.peak - gradients
        if self._on_gpu:
            activations = torch.cuda.max_memory_allocated() - there
        elif engine.is_sharded:
            activations = None
        return Measured(
            weights=banks + dense, gradients=gradients, state=state, originals=originals, activations=activations
        )


def _with_total(memory: Memory | Measured) -> dict[str, int | None]:
    return asdict(memory) | {"total": memory.total}


def _predicted(config: Config, given: Given, mesh: Mesh, split: Split) -> list[Memory]:
    """Of all ranks, in world order."""
    outline, model = _outline(config), given.model
    rows = given.inputs.encoded.rows
    has_pairs = bool(pair_terms(config.train.objective))
    masks_BLE = np.concatenate([store.masks[:] for store in given.masks.stores])
    setup = Setup(
        num_ranks=mesh.world.size,
        ep_size=mesh.ep.size,
        shards_dense=model.sharded_over is not None,
        offloads=config.parallel.offload_optimizer == "cpu",
        checkpointing=config.train.activation_checkpointing,
        batch_size=config.batches.batch_size,
        micro_batch_size=model.at_once(config.train.micro_batch_size),
        row_tokens=int(rows.num_tokens_R.max()),
        answer_tokens=int(rows.column("response").max()),
        masks_rows=masks_rows(config),
        sequences=2 if has_pairs else 1,
        live_tokens=None if has_pairs else most_in_pass(rows.num_tokens_R, given.inputs.plan, split),
        loss_tokens=None if has_pairs else most_in_pass(rows.column("response"), given.inputs.plan, split),
        audits=config.train.audit > 0,
        needs_base=needs_base(config.train.objective),
        dense_parameters=sum(weight.numel() for weight in model.dense.values()),
    )
    shares = of_masks(masks_BLE, model.placement.owner_LE.numpy(), setup.num_ranks, setup.ep_size)
    return [training_memory(outline, setup, share) for share in shares]


def most_in_pass(number_R: np.ndarray, plan: BatchPlan, split: Split) -> int:
    """No pass of any batch has more, where so many are of each row."""
    of_batches = np.split(number_R[np.array(plan.taken_P)], plan.index.starts_B1[1:-1])
    return max(int(np.sort(numbers)[-split.most_rows :].sum()) for numbers in of_batches)


def _outline(config: Config) -> Outline:
    known = recognised(config.model.path / CONFIG)
    if known is not None and config.model.dtype in ("auto", known.outline.dtype):
        return known.outline
    return outline_of_path(config.model.path, config.model.dtype)
