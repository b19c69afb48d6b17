"""Which attention can be computed where."""

from __future__ import annotations

import torch

from dist_moe.config.attention import ON_GPU
from dist_moe.errors import UserError


def refuse_attention(attention: str, device: torch.device, dtype: torch.dtype | None = None) -> None:
    """Raise a one-line `UserError` if `ModelConfig.attention` cannot be computed on a device, or in a data type; None:
    that is not known yet."""
    if attention in ON_GPU and device.type != "cuda":
        raise UserError(
            f"model.attention: {attention} needs a GPU, and this runs on {device.type}: set it to auto, sdpa or eager"
        )
    if attention == "flash_attention_2" and dtype not in (None, torch.bfloat16, torch.float16):
        found = str(dtype).removeprefix("torch.")
        raise UserError(
            f"model.attention: flash_attention_2 cannot compute in {found}: set model.dtype (and analysis.dtype, if it "
            "is set) to bfloat16, or model.attention to sdpa"
        )
