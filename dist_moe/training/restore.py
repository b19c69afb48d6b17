"""Gives a run's experts, dense weights and learning-rate schedule the state that a checkpoint holds."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LRScheduler

from dist_moe.errors import UserError, shown
from dist_moe.stats.names import expert_name
from dist_moe.training.adam import AdamState
from dist_moe.training.checkpoint_index import Checkpoint
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.weights.parts import INDEX, DensePart, TensorFacts
from dist_moe.weights.parts_io import read_dense, read_part

RESTORE = "restore it, or set overwrite to start again"


def load_checkpoint(checkpoint: Checkpoint, optimizer: SelectiveAdamW, schedule: LRScheduler) -> None:
    """Restore this rank's experts, whichever rank wrote them, the dense weights, and the learning-rate schedule.

    `optimizer` must be made for the union of the checkpoint's mask revision.

    Raises:
        UserError: it holds what this run does not train, or other shapes; nothing is restored.
    """
    by_name = _by_name(checkpoint.index.dense)
    _require_fits(checkpoint, by_name, optimizer)
    held = {(layer.index, expert) for layer in optimizer.layers for expert in layer.local}
    for name, part in checkpoint.index.files.items():
        if not held.isdisjoint(part.experts):
            for key, tensors in read_part(checkpoint.path, name, part, checkpoint.index.tensors):
                if key in held:
                    optimizer.restore(key, tensors)
    dense = read_dense(checkpoint.path, checkpoint.index.dense)
    for name, parts in by_name.items():
        optimizer.dense.restore(name, {field: dense[f"{name}.{field}"] for field in parts})
    schedule.load_state_dict(checkpoint.index.schedule)
    for group, lr in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = lr


def _by_name(dense: DensePart | None) -> dict[str, dict[str, TensorFacts]]:
    """Of each dense weight, the tensors of its state."""
    found: dict[str, dict[str, TensorFacts]] = {}
    for tensor, facts in (dense.tensors if dense else {}).items():
        name, _, field = tensor.rpartition(".")
        found.setdefault(name, {})[field] = facts
    return found


def _require_fits(checkpoint: Checkpoint, dense: dict[str, dict[str, TensorFacts]], optimizer: SelectiveAdamW) -> None:
    index, path = checkpoint.index, checkpoint.path / INDEX
    for layer, expert in (key for part in index.files.values() for key in part.experts):
        if layer >= len(optimizer.layers) or expert >= len(optimizer.layers[0].key_E):
            raise UserError(f"{path}: expert {expert_name(layer, expert)} is not one of the model's: {RESTORE}")
    expected = {"an expert": _facts(optimizer.layers[0].layout.size)} if index.tensors else {}
    for name in dense:
        if name not in optimizer.dense.state:
            raise UserError(f"{path}: {shown(name)} is not trained by this run: {RESTORE}")
        expected[name] = _facts(optimizer.dense.weights[name].numel())
    found = {"an expert": index.tensors, **dense}
    for name, facts in expected.items():
        for field, here in facts.items():
            there = found[name].get(field)
            if there != here:
                raise UserError(f"{path}: {field} of {name} is {there or 'missing'}, expected {here}: {RESTORE}")


def _facts(size: int) -> dict[str, TensorFacts]:
    """The state of so many values."""
    state = AdamState.new(torch.empty(size, device="meta"), torch.device("meta"))
    return {name: TensorFacts.of(tensor) for name, tensor in state.tensors().items()}
