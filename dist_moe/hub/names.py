"""Names of repositories of the Hugging Face hub, and what a directory of its cache says of itself. Asks nobody."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_moe.errors import UserError, shown

Kind = Literal["model", "dataset"]
PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
REPOSITORY = re.compile(rf"({PART}/{PART})(?:@(.+))?", re.ASCII)
DATASET = "hf:"
SNAPSHOT = re.compile(r"(models|datasets)--([^/]+)--([^/]+)/snapshots/([0-9a-f]{40})/?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the hub, as a user has named it."""

    name: str
    """OWNER/NAME."""
    revision: str | None = None
    """A branch, a tag or a commit; None: the branch main."""
    kind: Kind = "model"

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where files of the hub's cache come from."""

    repository: str
    """OWNER/NAME."""
    commit: str
    """40 hex digits."""


def repository_of(text: str) -> Repository | None:
    """The repository that OWNER/NAME or OWNER/NAME@REVISION names, or that a directory of a cache which is not here was
    of; None: the text names none."""
    found = REPOSITORY.fullmatch(text)
    if found is not None and ".." not in text and "--" not in found[1]:
        return Repository(found[1], found[2])
    origin = _origin(text)
    return None if origin is None else Repository(origin.repository, origin.commit)


def origin_of(path: Path) -> Origin | None:
    """Repository and commit of a directory in the hub's cache, also behind symbolic links; None: it is another one."""
    return _origin(os.path.realpath(path))


def model_name(path: Path) -> str:
    """What a model is called where it is published: the repository it was downloaded from, or else the last part of
    its path."""
    origin = origin_of(path)
    return path.resolve().name if origin is None else origin.repository


def origin_facts(path: Path) -> dict[str, str]:
    """For provenance: repository and commit of a model's directory; empty if it is not of the hub's cache."""
    origin = origin_of(path)
    return {} if origin is None else {"model_repository": origin.repository, "model_commit": origin.commit}


def _origin(path: str) -> Origin | None:
    found = SNAPSHOT.search(path)
    if found is None or found.end() != len(path):
        return None
    return Origin(f"{found[2]}/{found[3]}", found[4])


@dataclass(frozen=True, slots=True)
class Dataset:
    """A split of a dataset of the hub, as `data.paths` names it: hf:OWNER/NAME[/CONFIG][@REVISION]:SPLIT."""

    repository: Repository
    config: str | None
    """One of the dataset's configurations; None: it has one, or a default one."""
    split: str

    def __str__(self) -> str:
        config = "" if self.config is None else f"/{self.config}"
        revision = "" if self.repository.revision is None else f"@{self.repository.revision}"
        return f"{DATASET}{self.repository.name}{config}{revision}:{self.split}"


def dataset_of(text: str) -> Dataset | None:
    """The dataset that a text names; None: it is to be a path.

    Raises:
        UserError: it begins with `hf:` and names none.
    """
    if not text.startswith(DATASET):
        return None
    found = re.fullmatch(rf"({PART}/{PART})(?:/([\w.-]+))?(?:@([^:]+))?:([\w.]+)", text.removeprefix(DATASET), re.ASCII)
    if found is None:
        raise UserError(
            f"{shown(text, 200)}: expected hf:OWNER/NAME:SPLIT, or hf:OWNER/NAME/CONFIG@REVISION:SPLIT, such as "
            "hf:owner/prompts:train"
        )
    name, config, revision, split = found.groups()
    return Dataset(Repository(name, revision, "dataset"), config, split)
