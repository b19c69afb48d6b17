"""What a training run prints before its first step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from dist_moe.config.schema import Config
from dist_moe.model.model import MoEModel
from dist_moe.parallel.mesh import Mesh
from dist_moe.report.columns import spread
from dist_moe.report.model import forward_passes
from dist_moe.training.plan import FreezePlan
from dist_moe.training.revisions import MaskRevisions

MOST_BATCHES = 100
"""That are named with their masks."""


def before_training(
    config: Config,
    engine: str,
    masks: MaskRevisions,
    model: MoEModel,
    plan: FreezePlan,
    mesh: Mesh,
    work: Path,
    num_steps: int,
) -> Iterator[str]:
    """Lines: what is trained, of which model, and how it is spread over ranks. `work` is where the run works until
    its end, `num_steps` are planned."""
    share = 100 * plan.num_trainable / plan.num_parameters
    yield f"Total unique unsafe experts (union): {plan.num_experts}"
    yield f"Trainable: {plan.num_trainable:,} / {plan.num_parameters:,} ({share:.2f} %)"
    if plan.num_dense_parameters:
        turns = f", in turns: {' '.join(config.train.rounds)}" if config.train.rounds else ""
        dense = f"{len(model.dense)} dense weights of {plan.num_dense_parameters:,} parameters"
        yield f"Trains {config.train.trains}: also {dense}{turns}" if plan.num_experts else f"Trains {dense} only"
    if config.train.max_tokens is not None:
        yield f"Budget: {config.train.max_tokens:,} tokens, which {num_steps} steps train"
    numbers = np.array([batch.num_unsafe_experts for batch in masks.first.batches])
    yield f"Unsafe experts per batch: Min {numbers.min()}, Max {numbers.max()}, Mean {numbers.mean():.1f}"
    for batch in masks.first.batches[:MOST_BATCHES]:
        mask = f"mask {batch.mask_hash[:12]}, {batch.num_unsafe_experts} experts"
        yield f"  Batch {batch.index} ({batch.category}): {mask}"
    if len(numbers) > MOST_BATCHES:
        yield f"  ... and {len(numbers) - MOST_BATCHES} batches more"
    for end, old, new in zip(masks.ends, masks.stores, masks.stores[1:], strict=False):
        before_LE, after_LE = old.union(), new.union()
        parts = (before_LE & after_LE, before_LE & ~after_LE, after_LE & ~before_LE)
        stay, leave, come = (int(part.sum()) for part in parts)
        changes = f"{stay} experts stay in the union, {leave} leave, {come} are new"
        yield f"From step {end + 1} on masks of {new.path}: {changes}"
    yield from forward_passes(model)
    yield f"Engine: {engine}, {mesh.world.size} rank(s); mode {config.train.mode}"
    yield _placement_line(config, model, plan, mesh)
    if config.overwrite:
        yield f"Until training has finished, its results are in {work}; earlier results are kept"


def _placement_line(config: Config, model: MoEModel, plan: FreezePlan, mesh: Mesh) -> str:
    owned_R = model.placement.num_owned(torch.from_numpy(plan.union_LE), mesh.replicas.size)
    megabytes = 12e-6 * max(owned_R) * plan.num_expert_parameters
    return (
        f"Placement: {config.parallel.placement}, {mesh.replicas.size} replica(s) of {mesh.ep.size} rank(s); a rank "
        f"trains {spread(owned_R)} of the union's experts, optimizer state at most {megabytes:,.1f} MB"
    )
