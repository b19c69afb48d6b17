"""Where the model of a command is: a directory, or a repository of the Hugging Face hub, which one rank downloads."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from dist_moe.config.schema import Config
from dist_moe.hub.names import origin_of
from dist_moe.parallel.alone import alone
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.weights.fetched import is_remote, model_directory

log = logging.getLogger(__name__)


def with_model(config: Config, comm: Comm, *, weights: bool = True) -> Config:
    """The configuration with its model's directory, at one commit, in the place of a repository's name.

    Called by all ranks together, before anything else reads `config.model`. Without `weights`, none are downloaded.

    Raises:
        UserError: on all ranks: as `dist_moe.weights.fetched.model_directory`.
    """
    model = config.model
    path = placed(model.path, "model.path", comm, revision=model.revision, weights=weights)
    origin = origin_of(path) if path != model.path else None
    return config if origin is None else replace(config, model=replace(model, path=path, revision=origin.commit))


def placed(path: Path, what: str, comm: Comm, *, revision: str | None = None, weights: bool = True) -> Path:
    """The directory of one model; the rest as above."""
    if not any(comm.gather(is_remote(path))):
        with together(comm):
            return model_directory(path, what, revision=revision)
    found: list[Path] = []
    alone(comm, lambda: found.append(model_directory(path, what, revision=revision, weights=weights)))
    origin = comm.gather(origin_of(found[0]) if found else None)[0]
    with together(comm):
        if comm.rank > 0:  # on another node, perhaps, with a cache of its own
            same = Path(f"{origin.repository}@{origin.commit}") if origin is not None and is_remote(path) else path
            found.append(model_directory(same, what, weights=weights, asks=False))
    if origin is not None:
        log.info(f"Model: {origin.repository} at commit {origin.commit}, in {found[0]}")
    return found[0]
