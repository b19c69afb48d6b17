"""What the choice of attention means for a run."""

from __future__ import annotations

from dist_moe.config.schema import Config

ON_GPU = ("flash_attention_2", "flex_attention")
"""The others run anywhere. On a CPU torch's flex_attention has no backward pass, and compiles for minutes."""


def masks_rows(config: Config) -> bool:
    """Whether packed rows are kept apart by a mask of all pairs of tokens; those on a GPU know where rows end."""
    return config.data.packing and config.model.attention not in ON_GPU
