"""Prove that a checkpoint differs from its base in the union's experts only, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dist_moe.moe.checkpoint import StoredTensor, read_tensors
from dist_moe.moe.hub import HubLayout
from dist_moe.risk.names import expert_name

BLOCK = 1 << 26
"""Bytes compared at a time."""


@dataclass(slots=True)
class Verification:
    """What `verify_checkpoint` saw."""

    num_tensors: int = 0
    num_bytes: int = 0
    changed_tensors: list[str] = field(default_factory=list)
    changed_experts: set[tuple[int, int]] = field(default_factory=set)
    violations: list[str] = field(default_factory=list)
    """One line for each difference outside the union."""


def verify_checkpoint(base: Path, out: Path, union_LE: np.ndarray) -> Verification:
    """Compare every tensor of two model directories; `union_LE` bool [L, E] says which experts may differ."""
    old, new = read_tensors(base), read_tensors(out)
    layout = HubLayout(base, set(old))
    result = Verification(num_tensors=len(old), num_bytes=sum(t.stop - t.start for t in old.values()))
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
        per_row = hub is not None and hub.expert is None
        rows = _changed_rows(before, after, before.shape[0] if per_row else 1)
        if not rows:
            continue
        result.changed_tensors.append(name)
        if hub is None:
            result.violations.append(f"{name}: changed, but it is not an expert's")
            continue
        for expert in rows if hub.expert is None else [hub.expert]:
            result.changed_experts.add((hub.layer, expert))
            if not union_LE[hub.layer, expert]:
                where = f"{name} row {expert}" if per_row else name
                result.violations.append(f"{where}: changed, but {expert_name(hub.layer, expert)} is not in the union")
    return result


def _changed_rows(before: StoredTensor, after: StoredTensor, num_rows: int) -> list[int]:
    """Rows whose bytes differ, for a tensor seen as `num_rows` equal parts."""
    a, b = before.bytes(), after.bytes()
    size = len(a) // num_rows
    changed = []
    for row in range(num_rows):
        for start in range(row * size, (row + 1) * size, BLOCK):
            part = slice(start, min(start + BLOCK, (row + 1) * size))
            if not np.array_equal(a[part], b[part]):
                changed.append(row)
                break
    return changed
