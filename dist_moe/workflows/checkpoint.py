"""What is in a run's checkpoints: what `dist-moe checkpoint show` runs."""

from __future__ import annotations

from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.risk.names import expert_name
from dist_moe.training.checkpoint import INDEX, checkpoint_directories, read_checkpoint
from dist_moe.workflows.console import Say
from dist_moe.workflows.run_dir import RunDir

SHOWN_EXPERTS = 12


def show(path: Path, say: Say) -> None:
    """Say of each checkpoint in a run directory, or of one, its step, owners, bytes, facts; every byte is checked."""
    paths = [path] if (path / INDEX).is_file() else checkpoint_directories(RunDir(path).checkpoints)
    if not paths:
        raise UserError(f"{path}: no checkpoint: expected a run directory with checkpoints/, or one checkpoint")
    for each in paths:
        found = read_checkpoint(each)
        say(f"{each}: after step {found.step}, complete; {found.layout}")
        for rank, (name, part) in enumerate(found.parts.items()):
            replica, ep_rank = divmod(rank, found.layout.ep_size)
            size = (each / name).stat().st_size
            say(
                f"  rank {rank} (replica {replica}, ep rank {ep_rank}) owns {part.num_owned} experts, "
                f"{part.state_bytes:,} bytes of optimizer state; {name}: {size:,} bytes"
            )
            say(f"    stepped: {_names(part.experts)}")
        for key, value in found.index["facts"].items():
            say(f"  {key}: {value}")


def _names(experts: list[str]) -> str:
    """The experts of a file, "layer.expert", by name; of many the first."""
    names = [
        expert_name(*map(int, expert.split(".")))
        for expert in sorted(experts, key=lambda key: [int(number) for number in key.split(".")])
    ]
    more = f" and {len(names) - SHOWN_EXPERTS} more" if len(names) > SHOWN_EXPERTS else ""
    return " ".join(names[:SHOWN_EXPERTS]) + more or "none yet"
