"""Writes what a run has trained to files, experts from the banks of all ranks and dense weights, and loads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dist_moe.files import writing
from dist_moe.moe.bank import ExpertLayer
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.shared_files import SharedDirectory
from dist_moe.training.on_host import on_host
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.weights.parts import TensorFacts
from dist_moe.weights.parts_io import write_dense
from dist_moe.weights.trained import TrainedExperts, save_index, save_part


def save_experts(
    path: Path, layers: tuple[ExpertLayer, ...], optimizer: SelectiveAdamW, comm: Comm, facts: dict[str, Any]
) -> int:
    """Write the trained experts and dense weights, all ranks together; returns the number of experts. `facts` are
    stored in the index."""
    directory = SharedDirectory(path, comm)
    changed = optimizer.changed
    flat = on_host(layers[layer].flat(expert) for layer, expert in changed)
    rows = {key: layers[key[0]].layout.views(row) for key, row in zip(changed, flat, strict=True)}
    with together(comm), writing(path):
        part = save_part(directory.partial, comm.rank, rows)
    parts = {name: part for found in comm.gather(part) for name, part in found.items()}
    with together(comm), writing(path):
        if comm.rank == 0:
            dense = write_dense(directory.partial, _changed_dense(optimizer))
            save_index(directory.partial, parts, expert_tensors(layers), facts, dense)
    directory.publish()
    return sum(len(part.experts) for part in parts.values())


def _changed_dense(optimizer: SelectiveAdamW) -> dict[str, torch.Tensor]:
    changed = optimizer.dense.changed
    weights = (optimizer.dense.weights[name].detach().contiguous() for name in changed)
    return dict(zip(changed, on_host(weights), strict=True))


def expert_tensors(layers: tuple[ExpertLayer, ...]) -> dict[str, TensorFacts]:
    """Names and shapes of the weights of one expert of a model."""
    return {
        name: TensorFacts.of(weight.new_empty(weight.shape[1:], device="meta"))
        for name, weight in layers[0].bank.items()
    }


@torch.no_grad()
def load_experts(trained: TrainedExperts, layers: tuple[ExpertLayer, ...]) -> None:
    """Replace the weights of the experts that this rank holds by a run's trained ones.

    Raises:
        UserError: they are of a model with other layers, experts or shapes.
    """
    shapes = {name: facts.shape for name, facts in expert_tensors(layers).items()}
    trained.require_fits(len(layers), len(layers[0].key_E), shapes)
    for (layer, expert), weights in trained.weights():
        if expert in layers[layer].local:
            for name, row in layers[layer].row(expert).items():
                row.copy_(weights[name])


@torch.no_grad()
def load_dense(trained: TrainedExperts, weights: Mapping[str, torch.Tensor]) -> None:
    """Replace dense weights, given by name, by a run's trained ones."""
    for name, weight in trained.dense_weights().items():
        weights[name].copy_(weight)
