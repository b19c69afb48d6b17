"""The trained experts of a run, keyed by layer and expert: what export reads.

    experts/index.json                    {"format": ..., "experts": {"<layer>.<expert>": "<file>"}, ...}
    experts/experts-<rank>.safetensors    <layer>.<expert>.<weight>

Every rank writes the experts it holds, so nothing is gathered. Experts that never stepped equal the base and are not
written. The directory gets its name when it is complete.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dist_moe.errors import UserError
from dist_moe.moe.bank import ExpertLayer
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.shared_files import shared_directory, write_tensors
from dist_moe.training.optimizer import SelectiveAdamW

FORMAT, VERSION = "dist_moe experts", 1


def save_experts(
    path: Path, layers: tuple[ExpertLayer, ...], optimizer: SelectiveAdamW, comm: Comm, facts: dict[str, Any]
) -> int:
    """Called by all ranks together; returns the number of experts written. `facts` go into the index as they are."""
    name = f"experts-{comm.rank:05d}.safetensors"
    mine = [key for key, state in optimizer.expert_state.items() if state.step > 0]
    files = {f"{index}.{expert}": name for index, expert in mine}
    merged = {key: file for part in comm.gather(files) for key, file in part.items()}
    with shared_directory(path, comm) as partial:
        tensors = {
            f"{index}.{expert}.{weight}": row.cpu().contiguous().clone()
            for index, expert in mine
            for weight, row in layers[index].row(expert).items()
        }
        if tensors:
            write_tensors(partial / name, tensors)
        if comm.rank == 0:
            index = {"format": FORMAT, "version": VERSION, **facts, "experts": merged}
            (partial / "index.json").write_text(json.dumps(index, indent=1))
    return len(merged)


def read_index(path: Path) -> dict[str, Any]:
    """The index of a run's trained experts; a `UserError` if training has not finished there."""
    file = path / "index.json"
    if not file.is_file():
        raise UserError(f"{path}: no trained experts: expected index.json; run training to its end first")
    index: dict[str, Any] = json.loads(file.read_text())
    if index.get("format") != FORMAT or index.get("version") != VERSION:
        raise UserError(f"{file}: expected format '{FORMAT}' version {VERSION}, found '{index.get('format')}' "
                        f"version {index.get('version')}")  # fmt: skip
    return index


def read_experts(path: Path, layer: int) -> tuple[list[int], dict[str, torch.Tensor]]:
    """The trained experts of one layer and their weights, each [n, ...] in the experts' order."""
    files = {int(k.split(".")[1]): f for k, f in read_index(path)["experts"].items() if int(k.split(".")[0]) == layer}
    experts = sorted(files)
    rows: dict[str, list[torch.Tensor]] = {}
    for expert in experts:
        prefix = f"{layer}.{expert}."
        with safe_open(path / files[expert], "pt") as stream:
            for key in sorted(k for k in stream.keys() if k.startswith(prefix)):  # noqa: SIM118 (not a dict)
                rows.setdefault(key.removeprefix(prefix), []).append(stream.get_tensor(key))
    return experts, {name: torch.stack(tensors) for name, tensors in rows.items()}


@torch.no_grad()
def load_experts(path: Path, layers: tuple[ExpertLayer, ...]) -> None:
    """Put a run's trained experts in the place of the base's, for those that this rank holds."""
    for layer in layers:
        experts, weights = read_experts(path, layer.index)
        for i, expert in enumerate(experts):
            if expert in layer.local:
                for name, row in layer.row(expert).items():
                    row.copy_(weights[name][i])
