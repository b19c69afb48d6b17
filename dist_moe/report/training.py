"""What a training run says of itself before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dist_moe.config.schema import Config
from dist_moe.model.model import MoEModel
from dist_moe.parallel.mesh import Mesh
from dist_moe.store.read import MaskStore
from dist_moe.training.plan import FreezePlan


def before_training(
    config: Config, engine: str, masks: MaskStore, model: MoEModel, plan: FreezePlan, mesh: Mesh, work: Path
) -> Iterator[str]:
    """Line by line: what is trained, of what model, and how it is spread. `work` is where the run is until its end."""
    yield from plan.describe()
    numbers = np.array([batch.num_unsafe_experts for batch in masks.batches])
    yield f"Unsafe experts per batch: Min {numbers.min()}, Max {numbers.max()}, Mean {numbers.mean():.1f}"
    yield from model.describe()
    yield f"Engine: {engine}, {mesh.world.size} rank(s); mode {config.train.mode}"
    yield _placement_line(config, model, plan, mesh)
    if config.overwrite:
        yield f"Until this run has ended, its results are in {work}, and earlier ones stay"


def _placement_line(config: Config, model: MoEModel, plan: FreezePlan, mesh: Mesh) -> str:
    owned_R = model.placement.num_owned(torch.from_numpy(plan.union_LE), mesh.replicas.size)
    megabytes = 12e-6 * max(owned_R) * plan.num_expert_parameters
    return (
        f"Placement: {config.parallel.placement}, {mesh.replicas.size} replica(s) of {mesh.ep.size} rank(s); a rank "
        f"trains {min(owned_R)} to {max(owned_R)} of the union's experts, optimizer state at most {megabytes:,.1f} MB"
    )
