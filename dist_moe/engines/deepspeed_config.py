"""Reads a user's DeepSpeed JSON file, without importing DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dist_moe.errors import UserError, shown
from dist_moe.files import read_json

OWNED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
OWNED_SECTIONS = ("optimizer", "scheduler", "fp16", "bf16", "amp")


def read_deepspeed_config(path: Path | None) -> dict[str, Any]:
    """The contents of a DeepSpeed JSON file.

    Raises:
        UserError: it has settings that dist_moe sets itself, or ZeRO stage 1 or 2.
    """
    if path is None:
        return {}
    config = read_json(path, "train.deepspeed_config")
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object with DeepSpeed's settings")
    for key in (*OWNED, *OWNED_SECTIONS):
        if key in config:
            raise UserError(f"{path}: '{key}' is set by dist_moe from the train section: remove it")
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UserError(f"{path}: zero_optimization: expected an object, got {shown(zero)}")
    stage = zero.get("stage", 0)
    if stage not in (0, 3) or isinstance(stage, bool):
        raise UserError(
            f"{path}: zero_optimization.stage is {shown(stage)}: expected 0, or 3 to shard the frozen dense weights; "
            "dist_moe itself shards the experts and their optimizer state"
        )
    return config


def is_zero3(config: dict[str, Any]) -> bool:
    """Whether the contents of such a file ask for ZeRO-3, which shards the dense weights."""
    return bool(config.get("zero_optimization", {}).get("stage", 0) == 3)
