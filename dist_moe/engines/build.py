"""Creates the engine that the configuration names."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.optim.lr_scheduler import LRScheduler

from dist_moe.config.schema import Config
from dist_moe.engines.local import LocalEngine
from dist_moe.errors import UserError
from dist_moe.model.model import MoEModel
from dist_moe.parallel.comm import Comm, GroupComm
from dist_moe.parallel.rendezvous import launched
from dist_moe.training.engine import Engine
from dist_moe.training.split import Split

EngineName = Literal["local", "deepspeed", "fsdp"]


def engine_name(config: Config) -> EngineName:
    """The engine to use, with `auto` resolved.

    Raises:
        UserError: the engine cannot run here.
    """
    if config.engine == "auto":
        return "deepspeed" if launched() else "local"
    if config.engine == "local" and launched():
        raise UserError(
            "engine is 'local', but a launcher started several processes: set engine to deepspeed, fsdp or auto"
        )
    if config.engine == "fsdp" and not launched():
        raise UserError(
            "engine is 'fsdp', which a launcher must start: `torchrun --nproc_per_node N launch/train.py --config ...`"
        )
    if config.engine == "fsdp" and config.train.deepspeed_config is not None:
        raise UserError("train.deepspeed_config is set, but engine is 'fsdp', which reads no such file: remove it")
    if config.engine == "deepspeed" and not launched():
        raise UserError(
            "engine is 'deepspeed', which its launcher must start: run `deepspeed launch/train.py --config ...`"
        )
    return config.engine


def build_engine(
    name: EngineName,
    model: MoEModel,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    comm: Comm,
    deepspeed_settings: dict[str, Any],
    split: Split,
) -> Engine:
    """Create the engine around a model and its optimizer. Called by all ranks together."""
    if name == "local":
        return LocalEngine(model.module, optimizer, schedule)
    if name == "fsdp":
        from dist_moe.engines.fsdp import FsdpEngine

        assert isinstance(comm, GroupComm)
        return FsdpEngine(model.module, optimizer, schedule, comm)
    from dist_moe.engines.deepspeed import DeepSpeedEngine  # importing deepspeed takes seconds

    return DeepSpeedEngine(
        model.module,
        optimizer,
        schedule,
        user_config=deepspeed_settings,
        micro_batch_size=split.micro_batch_size,
        num_micro_batches=split.num_micro_batches,
    )
