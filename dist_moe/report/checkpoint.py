"""The lines that `dist-moe checkpoint show` prints."""

from __future__ import annotations

from collections.abc import Iterator

from dist_moe.stats.names import expert_name
from dist_moe.training.checkpoint_index import Checkpoint
from dist_moe.weights.parts import Expert

SHOWN_EXPERTS = 12


def checkpoint_lines(found: Checkpoint) -> Iterator[str]:
    """Lines about a checkpoint: its step, state, what each rank owns, and the facts of the run."""
    index, state = found.index, found.index.state
    yield f"{found.path}: after step {found.step}, complete; {index.layout}"
    place, done = state.position, state.done
    yield (
        f"  epoch {place.epoch}, {place.place} of {len(place.order)} batches done; masks r{state.masks.number}; "
        f"{done.rows:,} rows, {done.tokens:,} tokens so far"
    )
    for rank, (name, part) in enumerate(index.files.items()):
        replica, ep_rank = divmod(rank, index.layout.ep_size)
        yield (
            f"  rank {rank} (replica {replica}, ep rank {ep_rank}) owns {part.num_owned} experts, "
            f"{part.state_bytes:,} bytes of optimizer state; {name}: {part.num_bytes:,} bytes"
        )
        yield f"    stepped: {_names(part.experts)}"
    for key, value in index.facts.items():
        yield f"  {key}: {value}"


def _names(experts: list[Expert]) -> str:
    """Names of the experts of a file; only the first if there are many."""
    names = [expert_name(*expert) for expert in sorted(experts)]
    more = f" and {len(names) - SHOWN_EXPERTS} more" if len(names) > SHOWN_EXPERTS else ""
    return " ".join(names[:SHOWN_EXPERTS]) + more or "none yet"
