"""Says whether a directory is a model's; needs neither torch nor transformers, whose import takes seconds."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from dist_moe.errors import UserError, refused_by_library, shown
from dist_moe.weights.directory import CONFIG, read_tensors

ADAPTER = "adapter_config.json"


def check_model_dir(path: Path, *, weights: bool = True) -> None:
    """Raise a one-line `UserError` unless the path is a model directory with complete safetensors weights; reads
    headers only. Without `weights`, whether there are any does not matter."""
    if not os.path.isdir(path):  # unlike Path.is_dir, false for a name that no file can have
        raise UserError(f"model.path: no directory {shown(str(path), 200)}: expected a model in Hugging Face format")
    with refused_by_library(f"model.path: {path} cannot be read", "get permission to read it", (OSError,)):
        names = os.listdir(path)
    if CONFIG not in names or not os.path.isfile(path / CONFIG):
        raise UserError(f"model.path: {path} has no config.json: expected a model in Hugging Face format")
    if find_spec("peft") is not None and (path / ADAPTER).is_file():
        raise UserError(
            f"{path / ADAPTER}: with peft installed, transformers loads this adapter with the model: merge it into the "
            "weights (peft's merge_and_unload, then save_pretrained), or remove the file"
        )
    if weights:
        read_tensors(path)
