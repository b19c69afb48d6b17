"""A model's directory, by its path or by its name on the Hugging Face hub: the one place that knows of both."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path

from dist_moe.errors import UserError, shown
from dist_moe.hub.download import NOT_LOADED, is_cached, snapshot
from dist_moe.hub.names import Repository, origin_of, repository_of
from dist_moe.weights.directory import CONFIG, INDEX, SINGLE, read_json, weight_files

log = logging.getLogger(__name__)


def is_remote(path: Path) -> bool:
    """Whether there is no such directory here, and the path is the name of a repository."""
    return not os.path.isdir(path) and repository_of(str(path)) is not None


def hides_repository(path: Path) -> bool:
    """Whether a directory is read in the place of a repository of its name that is in the hub's cache."""
    named = repository_of(str(path)) if os.path.isdir(path) else None
    return named is not None and is_cached(named)


def model_directory(
    path: Path, what: str, *, revision: str | None = None, weights: bool = True, asks: bool = True
) -> Path:
    """The directory of a model; one that the hub has is downloaded into the hub's cache first.

    A directory comes before a repository of the same name. Of a repository only what transformers reads is downloaded:
    safetensors, and all small files. What is neither a directory nor the name of a repository is returned as it is.

    Args:
        path: a directory, OWNER/NAME or OWNER/NAME@REVISION, or a directory of the hub's cache on another machine.
        what: for messages, where the path stands: "model.path".
        revision: the setting of that name; not with `@`.
        weights: also the weights.
        asks: whether the hub may be asked; without, its cache has to hold everything.

    Raises:
        UserError: see `dist_moe.hub.download.snapshot`; or the repository has no safetensors weights, or a revision is
            given twice, or for a directory.
    """
    if not is_remote(path):
        _require_revision(path, what, revision)
        return _cached(path, what)
    named = repository_of(str(path))
    assert named is not None
    if revision is not None and named.revision not in (None, revision):
        raise UserError(
            f"{what} is {path}, and the revision {shown(revision)} is given too: leave the revision out of one"
        )
    wanted = replace(named, revision=revision or named.revision)
    absent = f"{what}: there is no directory {shown(str(path), 200)}"
    found = snapshot(wanted, absent, without=NOT_LOADED, asks=asks)
    if weights:
        at = replace(wanted, revision=found.name)
        snapshot(at, absent, only=_weight_names(found), asks=asks)
        _require_weights(found, what, at)
    return found


def _cached(path: Path, what: str) -> Path:
    """The directory itself; of a repository's entry in the hub's cache, the snapshot that its branch main is at."""
    if not path.name.startswith("models--") or not (path / "snapshots").is_dir():
        return path
    try:
        return path / "snapshots" / (path / "refs" / "main").read_text().strip()
    except OSError:
        raise UserError(
            f"{what}: {path} is an entry of the hub's cache without a branch main: give one of its snapshots/"
        ) from None


def _weight_names(path: Path) -> list[str]:
    """The files that may hold the weights, of a directory that has all others."""
    named = read_json(path / CONFIG).get("transformers_weights") if (path / CONFIG).is_file() else None
    names = [named] if isinstance(named, str) else [SINGLE, INDEX]
    for index in (name for name in list(names) if name.endswith(".index.json") and (path / name).is_file()):
        weight_map = read_json(path / index).get("weight_map")
        names += sorted({*map(str, weight_map.values())}) if isinstance(weight_map, dict) else []
    return names


def _require_weights(path: Path, what: str, repository: Repository) -> None:
    try:
        weight_files(path)
    except UserError as error:
        raise UserError(
            f"{what}: the hub's {repository.name} at commit {path.name[:12]} cannot be used: {error}"
        ) from None


def _require_revision(path: Path, what: str, revision: str | None) -> None:
    """Refuse a revision of a directory that is none."""
    origin = origin_of(path) if revision is not None and os.path.isdir(path) else None
    if revision is not None and os.path.isdir(path) and (origin is None or origin.commit != revision):
        raise UserError(
            f"{what}: {path} is a directory here, and has no revision {shown(revision)}: leave model.revision out, or "
            "move the directory away to read the repository of that name"
        )
