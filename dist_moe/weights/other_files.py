"""The files of a model directory beside those of its weights."""

from __future__ import annotations

from pathlib import Path

from dist_moe.weights.directory import KEPT_HASH, weight_files

CARD, BASE_CARD = "README.md", "BASE_README.md"
PICKLED = (".bin", ".pt", ".pth")
"""Pickled weight files, which run code when they are read; they are not copied."""
SAFE_INDEX = ".safetensors.index.json"


def other_files(path: Path) -> list[str]:
    """Names of the files of a model directory that an export has besides its weights, sorted."""
    files = [file for file in path.iterdir() if not file.name.endswith((".safetensors", SAFE_INDEX, *PICKLED))]
    files += (path / "additional_chat_templates").glob("*")
    return sorted(str(file.relative_to(path)) for file in files if file.is_file() and file.name != KEPT_HASH)


def read_files(path: Path) -> set[str]:
    """Names of the files of a model directory that influence the model beside its weights; no cards or hidden files."""
    return {name for name in other_files(path) if name not in (CARD, BASE_CARD) and not name.startswith(".")}


def unread_weights(path: Path) -> list[str]:
    """Names of weight files in a model directory that transformers does not read, sorted."""
    read = {path / name for name in weight_files(path).names}
    files = [*path.rglob("*.safetensors"), *path.glob(f"*{SAFE_INDEX}")]
    files += [file for file in path.iterdir() if file.suffix in PICKLED]
    return sorted(str(file.relative_to(path)) for file in files if file.is_file() and file not in read)
