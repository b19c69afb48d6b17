"""A dataset of the hub, as a directory of the hub's cache; none of its code is ever run."""

from __future__ import annotations

from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.hub.download import snapshot
from dist_moe.hub.names import Dataset


def dataset_directory(named: Dataset, what: str, *, asks: bool = True) -> Path:
    """The directory of all files of a dataset at one commit, the last part of its path; downloads them if need be.

    `what` is for messages; `asks` as in `dist_moe.hub.download.snapshot`.

    Raises:
        UserError: the hub refuses it, or it has a loading script.
    """
    place = snapshot(named.repository, f"{what}: a dataset of the hub", asks=asks)
    script = f"{named.repository.name.rpartition('/')[2]}.py"
    if (place / script).is_file():
        raise UserError(
            f"{what}: the dataset has a loading script, {script}, and no code of a dataset is run: download it, and "
            "save its rows as .parquet or .jsonl"
        )
    return place
