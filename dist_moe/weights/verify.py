"""Verifies byte by byte that a checkpoint differs from its base only in the experts of a union, and in the dense
weights that a run may train."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dist_moe.errors import refused_by_library
from dist_moe.files import hash_file
from dist_moe.stats.names import expert_name
from dist_moe.weights.directory import AGAIN, StoredTensor, read_tensors, weight_files
from dist_moe.weights.expert_tensors import ExpertTensors, HubTensor
from dist_moe.weights.finite import is_finite
from dist_moe.weights.other_files import read_files, unread_weights

BLOCK = 1 << 26
"""Number of bytes compared at a time."""


@dataclass(slots=True)
class Verification:
    """What `verify_checkpoint` has found."""

    base: Path
    model: Path
    num_union: int
    """Number of experts that may differ."""
    num_experts: int
    """Number of experts in all layers."""
    num_tensors: int = 0
    num_bytes: int = 0
    changed_tensors: list[str] = field(default_factory=list)
    changed_experts: set[tuple[int, int]] = field(default_factory=set)
    """(layer, expert) of the experts that differ, inside the union or not."""
    num_dense: int = 0
    """Number of dense tensors that may differ."""
    changed_dense: list[str] = field(default_factory=list)
    """Names of those of them that differ."""
    violations: list[str] = field(default_factory=list)
    """One line for each difference that should not be there."""
    unread: list[str] = field(default_factory=list)
    """Weight files in the compared directory that transformers does not read; they were not compared."""

    @property
    def holds(self) -> bool:
        """True if nothing differs that may not."""
        return not self.violations


def verify_checkpoint(
    layout: ExpertTensors, out: Path, union_LE: np.ndarray, dense: frozenset[str] = frozenset()
) -> Verification:
    """Compare a model directory with the base that `layout` describes; `union_LE` bool [L, E]: experts that may differ,
    `dense`: tensors that may differ, too.

    Compares what `from_pretrained` reads: all tensors as bytes, and all other files that influence the model, such as
    configuration and tokenizer. The index and the names of the shards must be equal too. Model cards may differ.
    """
    base, old, new = layout.path, layout.stored, read_tensors(out)
    result = Verification(
        base,
        out,
        num_union=int(union_LE.sum()),
        num_experts=union_LE.size,
        num_tensors=len(old),
        num_bytes=sum(t.num_bytes for t in old.values()),
        num_dense=len(dense),
    )
    result.unread = unread_weights(out)
    result.violations += _file_differences(base, out)
    result.violations += [f"{name}: in the base, but not in {out}" for name in sorted(old.keys() - new.keys())]
    result.violations += [f"{name}: in {out}, but not in the base" for name in sorted(new.keys() - old.keys())]
    for name in sorted(old.keys() & new.keys()):
        before, after = old[name], new[name]
        if (before.dtype, before.shape) != (after.dtype, after.shape):
            result.violations.append(
                f"{name}: {before.dtype} {list(before.shape)} in the base, {after.dtype} {list(after.shape)} in {out}"
            )
            continue
        hub = layout.tensors.get(name)
        for expert, row in _changes(before, after, hub, layout.num_experts):
            if result.changed_tensors[-1:] != [name]:
                result.changed_tensors.append(name)
            if name in dense:
                result.changed_dense.append(name)
                if not is_finite(after.bytes(), after.dtype):
                    result.violations.append(f"{name}: has a value that is NaN or infinite")
                continue
            if hub is None or expert is None:
                result.violations.append(f"{name} row {row}: changed, but it is not an expert's")
                continue
            result.changed_experts.add((hub.layer, expert))
            label = expert_name(hub.layer, expert)
            if not union_LE[hub.layer, expert]:
                result.violations.append(f"{name} row {row}: changed, but {label} is not in the union")
                continue
            of_expert = after if hub.expert is not None else after.rows(hub.row(expert))
            if not is_finite(of_expert.bytes(), after.dtype):
                result.violations.append(f"{name} row {row}: {label} has a value that is NaN or infinite")
    return result


def _changes(
    before: StoredTensor, after: StoredTensor, hub: HubTensor | None, num_experts: int
) -> Iterator[tuple[int | None, int]]:
    """Expert (None: the tensor belongs to no expert) and first row of each difference; at most one per expert."""
    if hub is not None and hub.expert is None:
        rows = hub.rows or 1
        for number in range(before.shape[0] // rows):  # past the experts: what a checkpoint holds for null experts
            row = hub.row(number)
            if _first_difference(before.rows(row), after.rows(row)) is not None:
                yield number if number < num_experts else None, number * rows
        return
    at = _first_difference(before, after)
    if at is not None:
        yield hub.expert if hub else None, at * before.shape[0] // before.num_bytes if before.shape else 0


def _first_difference(before: StoredTensor, after: StoredTensor) -> int | None:
    """Position of the first byte that differs."""
    a, b = before.bytes(), after.bytes()
    for start in range(0, len(a), BLOCK):
        differs = a[start : start + BLOCK] != b[start : start + BLOCK]
        if differs.any():
            return start + int(differs.argmax())
    return None


def _file_differences(base: Path, out: Path) -> list[str]:
    old, new = ({*read_files(path), *weight_files(path).names} for path in (base, out))
    lines = [f"{name}: in the base, but not in {out}" for name in sorted(old - new)]
    lines += [f"{name}: in {out}, but not in the base" for name in sorted(new - old)]
    changed = (name for name in sorted(old & new - {*weight_files(base).shards}) if _differ(base / name, out / name))
    return lines + [f"{name}: changed, but it is not an expert's" for name in changed]


def _differ(before: Path, after: Path) -> bool:
    with refused_by_library(f"{after}: cannot be compared with {before}", AGAIN, (OSError,)):
        return hash_file(before) != hash_file(after)
