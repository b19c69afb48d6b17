"""Identifies a model by the hash of its bytes, which is stored beside the model until a file changes.

Hashing reads every byte (minutes for 60 GB), so one rank does it, once. The stored hash is used while name, size, inode
and times of change of each file stay the same: a file that is overwritten and given its old modification time has
another ctime, and a copied directory has other inodes. `rehash` computes it again. Export and verify always read the
bytes.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from dist_moe.artefacts import EXACT, read_sealed, write_sealed
from dist_moe.errors import UserError, refused_by_library
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.weights.directory import AGAIN, CONFIG, KEPT_HASH, model_hash, weight_files

log = logging.getLogger(__name__)

KIND, VERSION = "dist_moe-model-hash", 1
SETTLED_S = 10.0
"""No hash is stored if a file has changed more recently than this, because the clock may be too coarse to show
another change."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What the file system says of a file, without reading it."""

    __pydantic_config__ = EXACT

    num_bytes: int
    inode: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class Identity:
    """A model's hash, and the states of its files by name."""

    __pydantic_config__ = EXACT

    model_hash: str
    files: dict[str, FileState]


def shared_model_hash(path: Path, comm: Comm, *, rehash: bool = False) -> str:
    """`model_hash`, for which one rank reads the files; called by all ranks together.

    A rank with other files than rank 0, on its own node's disk, reads them itself.

    Raises:
        UserError: on all ranks: one of them cannot read the model, or has another model.
    """
    identity = None
    with together(comm):
        if comm.rank == 0:
            identity = identify(path, rehash=rehash)
    told = comm.gather(identity)[0]
    assert told is not None
    with together(comm) as same:
        own = told if _states(path) == told.files else identify(path, rehash=rehash)
        same["the model's hash"] = own.model_hash
    return own.model_hash


def identify(path: Path, *, rehash: bool = False) -> Identity:
    """A model's hash: the stored one if no file has changed since; else computed from the bytes, and stored."""
    file, before = path / KEPT_HASH, _states(path)
    kept = None if rehash else _kept(file)
    if kept is not None and kept.files == before:
        log.info(
            f"The model's hash is taken from {file}, because no file has changed since; --rehash computes it again"
        )
        return kept
    found = Identity(model_hash(path), before)
    newest = max(max(state.mtime_ns, state.ctime_ns) for state in before.values())
    if _states(path) == before and time.time() - newest / 1e9 > SETTLED_S:
        _keep(file, found)
    return found


def _states(path: Path) -> dict[str, FileState]:
    found = {}
    for name in (CONFIG, *weight_files(path).shards):
        with refused_by_library(f"{path / name}: cannot be read", AGAIN, (OSError,)):
            stat = (path / name).stat()
        found[name] = FileState(stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns)
    return found


def _kept(file: Path) -> Identity | None:
    """The stored hash; None if there is none, or if it is damaged or of another version."""
    if not file.is_file():
        return None
    try:
        return read_sealed(file, KIND, VERSION, Identity, "it is written anew")[0]
    except UserError:
        return None


def _keep(file: Path, found: Identity) -> None:
    try:
        write_sealed(file, KIND, VERSION, asdict(found))
    except OSError as error:
        log.info(f"{file}: cannot store the model's hash ({error.strerror}), so every start reads all weights")
