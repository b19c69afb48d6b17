"""Bytes that a run writes, at most: stores and tables are compressed, and mostly much smaller."""

from __future__ import annotations

from dataclasses import dataclass

from dist_moe.planning.memory import STATE_BYTES
from dist_moe.planning.outline import Outline


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes."""

    counts: int
    """counts.zarr, for each prompt."""
    masks: int
    """masks.zarr, for each batch."""
    checkpoint: int
    """One checkpoint; so many are kept as `checkpoint.keep` says, and one is being written."""
    experts: int
    """The trained experts, and a delta of them."""
    export: int
    """A whole checkpoint in the Hugging Face format; `--link` takes less."""


COUNT_BYTES, GATE_BYTES = 4, 8
STATISTICS_BYTES = 32
"""Of p, q, an interval, stability and others, for each expert of each batch."""


def disk(outline: Outline, num_trained: int) -> Disk:
    """Of a run that trains so many experts in all."""
    experts = outline.num_layers * outline.num_experts
    numbers = num_trained * outline.expert_parameters
    return Disk(
        counts=experts * (COUNT_BYTES + GATE_BYTES),
        masks=experts * STATISTICS_BYTES + experts // 8,
        checkpoint=numbers * STATE_BYTES,
        experts=numbers * outline.item_bytes,
        export=outline.total_bytes,
    )
