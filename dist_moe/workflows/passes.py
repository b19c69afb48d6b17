"""Checks, before any rows are read, that forward passes can be as the configuration says."""

from __future__ import annotations

import torch

from dist_moe.config.schema import Config
from dist_moe.conformance.packing import refuse_packing
from dist_moe.model.attention import refuse_attention
from dist_moe.moe.load import empty_model
from dist_moe.weights.configuration import read_config
from dist_moe.weights.model_dir import check_model_dir


def require_passes(config: Config, device: torch.device) -> None:
    """Refuse attention and packing that the model or the device has not.

    Raises:
        UserError: says what to do.
    """
    refuse_attention(config.model.attention, device)
    if config.model.attention == "auto" and not config.data.packing:
        return
    check_model_dir(config.model.path, weights=False)
    empty_model(config.model.path, torch.bfloat16, weights=False, attention=config.model.attention)
    if config.data.packing:
        refuse_packing(read_config(config.model.path).model_type, config.model, device)
