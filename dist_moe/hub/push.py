"""Pushes a directory to a new repository of the hub, in one commit, and compares what the hub then holds with it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dist_moe.errors import UserError, shown
from dist_moe.files import hash_file
from dist_moe.hub.names import repository_of

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

OF_THE_HUB = ".gitattributes"
"""The one file that a new repository has."""
HIDDEN = ".*"
"""What is kept beside a model is not pushed."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What a push has left on the hub."""

    url: str
    commit: str
    is_private: bool
    num_files: int
    num_bytes: int


def require_pushable(name: str, *, private: bool) -> None:
    """Refuse early what could not be pushed in the end; writes nothing.

    Raises:
        UserError: there is no token, or none that the hub knows; the repository has files, or another visibility.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    named = repository_of(name)
    if named is None or named.revision is not None:
        raise UserError(f"--push: expected OWNER/NAME, got {shown(name, 200)}")
    if get_token() is None:
        raise UserError(
            f"--push: there is no token for {constants.ENDPOINT}: log in with `hf auth login`, or set HF_TOKEN to one "
            "that may write"
        )
    with _refused(name):
        known = HfApi().whoami()
        try:
            info = HfApi().model_info(name)
        except RepositoryNotFoundError:
            info = None
    owners = [known["name"], *(each["name"] for each in known.get("orgs", ()))]
    if name.partition("/")[0] not in owners:
        raise UserError(f"--push: the token is of {' and '.join(owners)}, none of which is the owner of {name}")
    if info is None:
        return
    if {file.rfilename for file in info.siblings or ()} - {OF_THE_HUB}:
        raise UserError(
            f"--push: {constants.ENDPOINT}/{name} has files already, and a push overwrites nothing: choose another name"
        )
    if bool(info.private) != private:
        there, wanted = ("private", "public") if info.private else ("public", "private")
        raise UserError(
            f"--push: {constants.ENDPOINT}/{name} is {there}, and the push is to be {wanted}: choose another name"
        )


def push(folder: Path, name: str, *, private: bool, message: str) -> Pushed:
    """Make the repository, and commit all files of a directory to it; a push that is killed leaves no commit.

    Raises:
        UserError: the hub refuses it or cannot be reached; or it then holds something else than was pushed.
    """
    from huggingface_hub import HfApi, constants

    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if _is_pushed(file, folder)}
    with _refused(name):
        HfApi().create_repo(name, private=private, exist_ok=True)
        commit = (
            HfApi()
            .upload_folder(repo_id=name, folder_path=folder, ignore_patterns=[HIDDEN], commit_message=message)
            .oid
        )
        info = HfApi().model_info(name, revision=commit, files_metadata=True)
    held = {file.rfilename: file for file in info.siblings or ()}
    for path, file in files.items():
        if path not in held or not _is_same(held[path], file):
            raise UserError(
                f"--push: {constants.ENDPOINT}/{name} at commit {commit[:12]} does not hold {path} as it is in "
                f"{folder}: delete that repository, and push again"
            )
    num_bytes = sum(file.stat().st_size for file in files.values())
    return Pushed(f"{constants.ENDPOINT}/{name}", commit, bool(info.private), len(files), num_bytes)


def _is_same(there: RepoSibling, file: Path) -> bool:
    """Whether the hub has a file's bytes: it gives the SHA-256 of large files, and git's name of small ones."""
    return there.lfs.sha256 == hash_file(file) if there.lfs is not None else there.blob_id == _blob_id(file)


def _is_pushed(file: Path, folder: Path) -> bool:
    return file.is_file() and not str(file.relative_to(folder)).startswith(".")


def _blob_id(file: Path) -> str:
    """Git's name of a file's contents, which the hub gives for small files."""
    total = hashlib.sha1(b"blob %d\0" % os.path.getsize(file), usedforsecurity=False)
    total.update(file.read_bytes())
    return total.hexdigest()


@contextmanager
def _refused(name: str) -> Iterator[None]:
    """Context manager: what the hub says becomes one line."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    at, log_in = constants.ENDPOINT, "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except OfflineModeIsEnabled:
        raise UserError(f"--push: HF_HUB_OFFLINE forbids to ask {at}: unset it") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        why = {401: f"does not know the token: {log_in}", 403: f"does not let this token write to {name}: {log_in}"}
        raise UserError(f"--push: {at} {why.get(status, f'answers with status {status}: try again later')}") from None
    except (HTTPError, RuntimeError) as error:  # the client wraps what happens in its threads
        raise UserError(
            f"--push: the connection to {at} was lost ({type(error).__name__}); nothing was committed: push again"
        ) from None
