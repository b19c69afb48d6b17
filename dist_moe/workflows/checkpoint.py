"""What is in a run's checkpoints: what `dist-moe checkpoint show` runs."""

from __future__ import annotations

import logging
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.stats.names import expert_name
from dist_moe.training.checkpoint import checkpoint_directories, read_checkpoint
from dist_moe.training.parts import INDEX, Expert
from dist_moe.workflows.run_dir import RunDir

log = logging.getLogger(__name__)


SHOWN_EXPERTS = 12


def show(path: Path) -> None:
    """Log of each checkpoint in a run directory, or of one, its step, owners, bytes, facts; every byte is checked."""
    run = RunDir(path)
    places = (run, RunDir(run.training))
    paths = [path] if (path / INDEX).is_file() else [p for r in places for p in checkpoint_directories(r.checkpoints)]
    if not paths:
        raise UserError(f"{path}: no checkpoint: expected a run directory with checkpoints/, or one checkpoint")
    for each in paths:
        found = read_checkpoint(each)
        index, state = found.index, found.index.state
        log.info(f"{each}: after step {found.step}, complete; {index.layout}")
        place, done = state.position, state.done
        log.info(
            f"  epoch {place.epoch}, {place.place} of {len(place.order)} batches done; masks r{state.masks.number}; "
            f"{done.rows:,} rows, {done.tokens:,} tokens so far"
        )
        for rank, (name, part) in enumerate(index.files.items()):
            replica, ep_rank = divmod(rank, index.layout.ep_size)
            log.info(
                f"  rank {rank} (replica {replica}, ep rank {ep_rank}) owns {part.num_owned} experts, "
                f"{part.state_bytes:,} bytes of optimizer state; {name}: {part.num_bytes:,} bytes"
            )
            log.info(f"    stepped: {_names(part.experts)}")
        for key, value in index.facts.items():
            log.info(f"  {key}: {value}")


def _names(experts: list[Expert]) -> str:
    """The experts of a file; of many the first."""
    names = [expert_name(*expert) for expert in sorted(experts)]
    more = f" and {len(names) - SHOWN_EXPERTS} more" if len(names) > SHOWN_EXPERTS else ""
    return " ".join(names[:SHOWN_EXPERTS]) + more or "none yet"
