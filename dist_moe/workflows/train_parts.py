"""Makes what takes a run's steps, from what it was given: optimizer, learning rates, rows and engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from dist_moe.config.objective import pair_terms
from dist_moe.config.schema import Config, TrainConfig
from dist_moe.engines.build import build_engine
from dist_moe.model.model import MoEModel
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.mesh import Mesh
from dist_moe.store.read import MaskStore
from dist_moe.training.engine import Engine
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.split import Rows, Split
from dist_moe.workflows.train_given import Given


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What takes a run's steps, on this rank."""

    comm: Comm
    """All ranks."""
    optimizer: SelectiveAdamW
    curve: LRScheduler
    """The learning-rate schedule."""
    rows: Rows
    engine: Engine


def build_parts(config: Config, given: Given, masks: MaskStore, mesh: Mesh) -> Parts:
    """`masks` are those of the next step. Called by all ranks together; the model is then the engine's."""
    model, comm = given.model, mesh.world
    optimizer = _optimizer(config, model, given.rounds.union(masks.union()), mesh)
    most_steps = given.schedule.num_steps + (config.train.adjust.budget if given.adjusting else 0)
    curve = _curve(config.train, optimizer, most_steps)
    most_rows = model.at_once(config.train.micro_batch_size)
    split = Split.of(config.batches.batch_size, comm.size, most_rows, packed=model.packed)
    pairs = bool(pair_terms(config.train.objective))
    rows = Rows(given.inputs.rows, split, comm.rank, given.inputs.pad_id, pairs)
    engine = build_engine(given.engine, model, optimizer, curve, comm, given.deepspeed_settings, split)
    model.sharded_over = comm if engine.is_sharded else None
    return Parts(comm=comm, optimizer=optimizer, curve=curve, rows=rows, engine=engine)


def _optimizer(config: Config, model: MoEModel, union_LE: np.ndarray, mesh: Mesh) -> SelectiveAdamW:
    train = config.train
    return SelectiveAdamW(
        model.layers,
        torch.from_numpy(union_LE),
        mesh,
        lr=train.lr,
        betas=train.betas,
        eps=train.eps,
        weight_decay=train.weight_decay,
        max_norm=train.max_norm,
        state_device=torch.device("cpu") if config.parallel.offload_optimizer == "cpu" else None,
        dense=model.dense,
    )


def _curve(train: TrainConfig, optimizer: SelectiveAdamW, num_steps: int) -> LRScheduler:
    """The learning-rate schedule."""
    curve = "constant_with_warmup" if train.schedule == "constant" else train.schedule
    return get_scheduler(curve, optimizer, train.warmup_steps, num_steps)
