"""Reading a user's DeepSpeed JSON, without importing DeepSpeed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dist_moe.errors import UserError

OWNED = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
OWNED_SECTIONS = ("optimizer", "scheduler", "fp16", "bf16", "amp")


def read_deepspeed_config(path: Path | None) -> dict[str, Any]:
    """A user's DeepSpeed JSON. Settings that belong to dist_moe, and ZeRO stages 1 and 2, are a `UserError`."""
    if path is None:
        return {}
    if not path.is_file():
        raise UserError(f"train.deepspeed_config: no file {path}")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: expected a JSON object with DeepSpeed's settings")
    for key in (*OWNED, *OWNED_SECTIONS):
        if key in config:
            raise UserError(f"{path}: '{key}' is set by dist_moe from the train section: remove it")
    stage = config.get("zero_optimization", {}).get("stage", 0)
    if stage not in (0, 3):
        raise UserError(
            f"{path}: zero_optimization.stage is {stage}: expected 0, or 3 to shard the frozen dense weights; dist_moe "
            "itself shards the experts and their optimizer state"
        )
    return config
