"""Brings files of a repository into the hub's cache, or finds them there; every failure is one line."""

from __future__ import annotations

import glob
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dist_moe.errors import UserError, shown
from dist_moe.files import writing
from dist_moe.hub.names import Repository

log = logging.getLogger(__name__)

NOT_LOADED = (
    *("*.safetensors", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data"),
    *("*.gguf", "*.ot", "*.tflite", "*.nemo", "*.tar", "*.gz", "*.zip", "*.npz", "*.parquet"),
)
"""Weights of all formats, and archives: what a model has beside its weights is none of these."""


def snapshot(
    repository: Repository,
    what: str,
    *,
    only: Sequence[str] | None = None,
    without: Sequence[str] = (),
    asks: bool = True,
) -> Path:
    """The directory in the hub's cache that holds files of a repository at one commit, the last part of its path.

    The hub is asked which commit a branch is at. If it cannot be reached, the cache has to hold the files, at the
    commit that the branch was at when it was last reached. Of a commit that is in the cache, nobody is asked anything.

    Args:
        repository: what is wanted.
        what: for messages, what was looked for in vain before: "model.path: no directory 'owner/name'".
        only: names of these files; None: all.
        without: patterns of files that are not wanted.
        asks: whether the hub may be asked; without, the cache has to hold the files.

    Raises:
        UserError: the hub refuses the repository or has none, cannot be reached while the cache lacks files, or the
            disk is full.
    """
    from huggingface_hub import constants, snapshot_download

    with writing(Path(constants.HF_HUB_CACHE)), _refused(what, repository):
        return Path(
            snapshot_download(
                repository.name,
                repo_type=repository.kind,
                revision=repository.revision,
                allow_patterns=None if only is None else [glob.escape(name) for name in only],
                ignore_patterns=list(without) or None,
                local_files_only=not asks,
                tqdm_class=_bars(),
            )
        )


def is_cached(repository: Repository) -> bool:
    """Whether the hub's cache has anything of a repository."""
    from huggingface_hub import constants

    owner, name = repository.name.split("/")
    return Path(constants.HF_HUB_CACHE, f"{repository.kind}s--{owner}--{name}").is_dir()


def _bars() -> type:
    """The client's progress bars, on a terminal only."""
    from huggingface_hub.utils import tqdm

    class Bars(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings | {"disable": not sys.stderr.isatty()})

    return Bars


@contextmanager
def _refused(what: str, repository: Repository) -> Iterator[None]:
    """Context manager: what the hub's client says becomes one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, at = repository.name, constants.ENDPOINT
    place = f"{at}/{'datasets/' if repository.kind == 'dataset' else ''}{name}"
    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except GatedRepoError:
        raise UserError(f"{what}, and {place} is gated: accept its terms there, and {log_in}") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{what}, and {at} has no {repository.kind} repository {name}, or does not show it to this token: check "
            f"the name; for a private one {log_in}"
        ) from None
    except RevisionNotFoundError:
        raise UserError(
            f"{what}, and {place} has no revision {shown(repository.revision)}: give a branch, a tag or a commit of it"
        ) from None
    except LocalEntryNotFoundError as error:
        raise UserError(f"{what}, and {_not_in_cache(repository, error)}") from None
    except HfHubHTTPError as error:
        raise UserError(
            f"{what}, and {place} answers with status {error.response.status_code}: try again later"
        ) from None
    except (HTTPError, FileMetadataError, EntryNotFoundError) as error:
        raise UserError(
            f"{what}, and the download of {place} was cut off ({type(error).__name__}): run the same command again, "
            "which downloads what is missing"
        ) from None


def _not_in_cache(repository: Repository, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    kind = " --repo-type dataset" if repository.kind == "dataset" else ""
    revision = "" if repository.revision is None else f" --revision {repository.revision}"
    there = f"only a part of {repository} is" if hasattr(error, "snapshot_path") else f"{repository} is not"
    why = f"{constants.ENDPOINT} cannot be reached"
    if constants.HF_HUB_OFFLINE:
        why = "HF_HUB_OFFLINE forbids to ask the hub"
    elif isinstance(error.__cause__, HfHubHTTPError):
        why = f"{constants.ENDPOINT} answers with status {error.__cause__.response.status_code}"
    elif error.__cause__ is None:
        why = "only one rank of all downloads"
    return (
        f"{there} in the hub's cache {constants.HF_HUB_CACHE}, and {why}: run `hf download "
        f"{repository.name}{kind}{revision}` with a network and the same HF_HOME, or give a directory"
    )
