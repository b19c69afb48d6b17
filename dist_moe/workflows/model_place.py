"""Where the model and the rows of a command are: here, or on the Hugging Face hub, from where one rank downloads."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dist_moe.config.schema import Config
from dist_moe.hub.datasets import dataset_directory
from dist_moe.hub.names import Dataset, dataset_of, origin_of
from dist_moe.parallel.alone import alone
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.weights.fetched import hides_repository, is_remote, model_directory

log = logging.getLogger(__name__)


def from_hub(config: Config, comm: Comm, *, weights: bool = True) -> Config:
    """The configuration with its model's directory in the place of a repository's name, and with a commit in the name
    of each dataset.

    Called by all ranks together, before anything else reads the model or rows. Without `weights`, none are downloaded.

    Raises:
        UserError: on all ranks: as `dist_moe.weights.fetched.model_directory`, and `placed_data`.
    """
    model, adjust = config.model, config.train.adjust
    data, judged = placed_data(config.data.paths, comm), placed_data(adjust.data, comm)
    train = replace(config.train, adjust=replace(adjust, data=judged))
    config = replace(config, data=replace(config.data, paths=data), train=train)
    path = placed(model.path, "model.path", comm, revision=model.revision, weights=weights)
    origin = origin_of(path) if path != model.path else None
    return config if origin is None else replace(config, model=replace(model, path=path, revision=origin.commit))


def placed(path: Path, what: str, comm: Comm, *, revision: str | None = None, weights: bool = True) -> Path:
    """The directory of one model; the rest as above."""
    if not any(comm.gather(is_remote(path))):
        with together(comm):
            if hides_repository(path):
                log.info(f"{what}: the directory {path} is read, not the repository of that name in the hub's cache")
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


def placed_data(paths: Sequence[Path], comm: Comm) -> tuple[Path, ...]:
    """Files of rows; each dataset of the hub is downloaded, and has a commit in its name.

    Raises:
        UserError: on all ranks: a name is none; or as `dist_moe.hub.datasets.dataset_directory`.
    """
    with together(comm):
        named = [_dataset(path) for path in paths]
    if not any(named):
        return tuple(paths)
    found: list[Path] = []
    alone(comm, lambda: found.extend(_pinned(path, dataset) for path, dataset in zip(paths, named, strict=True)))
    pinned = comm.gather(found)[0]
    with together(comm):
        for path, dataset in zip(pinned, map(_dataset, pinned), strict=True):
            if dataset is not None and comm.rank > 0:
                dataset_directory(dataset, str(path), asks=False)
    for path, dataset in zip(pinned, named, strict=True):
        if dataset is not None:
            log.info(f"Data: {path}")
    return tuple(pinned)


def _dataset(path: Path) -> Dataset | None:
    """The dataset of a path, or of SUITE=PATH."""
    _, _, last = str(path).rpartition("=")
    return dataset_of(last)


def _pinned(path: Path, dataset: Dataset | None) -> Path:
    if dataset is None:
        return path
    suite, mark, _ = str(path).rpartition("=")
    place = dataset_directory(dataset, str(path))
    commit = replace(dataset.repository, revision=place.name)
    return Path(f"{suite}{mark}{replace(dataset, repository=commit)}")
