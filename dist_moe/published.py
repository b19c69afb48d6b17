"""Directories of results at URLs (s3://, gs://, memory://, ...), through fsspec: written file by file, and then marked.

An object store has no rename, no lock and no fsync; it stores one object whole, or not at all. So a list of all files
with their digests is written last, and only what has this list is there for a reader. A writer that is killed leaves
files without a list, and the same command writes them again. Whoever reads compares every file with the list.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dist_moe.artefacts import EXACT, Written, read_sealed, write_sealed
from dist_moe.errors import UserError, refused_by_library, shown
from dist_moe.files import atomic_directory, require_absent

LIST, KIND, VERSION = "published.json", "dist_moe-published", 1
ADVICE = "check the URL, and what its file system needs (rights, a connection, a package)"


@dataclass(frozen=True, slots=True)
class Published:
    """The files of a published directory, by their names in it."""

    __pydantic_config__ = EXACT

    files: dict[str, Written]

    @property
    def num_bytes(self) -> int:
        return sum(written.num_bytes for written in self.files.values())


def publish(folder: Path, names: Iterable[str], url: str) -> Published:
    """Write files of a directory to a URL, and the list of them last.

    Raises:
        UserError: something is published there already, or it cannot be written.
    """
    files, root = _file_system(url)
    with _refused(f"cannot write {url}"):
        if files.exists(f"{root}/{LIST}"):
            raise UserError(f"{url} is published already, and is not overwritten: choose another URL")
    listed: dict[str, Written] = {}
    for name in names:
        place = f"{root}/{name}"
        listed[name] = Written.of(folder / name)
        with _refused(f"cannot write {url}/{name}"):
            make_parents(files, place)
            files.put_file(str(folder / name), place)
            num_bytes = files.size(place)
        if num_bytes != listed[name].num_bytes:
            raise UserError(
                f"cannot write {url}/{name}: it has {num_bytes} bytes there and {listed[name].num_bytes} here: run the "
                "same command again"
            )
    found = Published(listed)
    with tempfile.TemporaryDirectory() as local:
        write_sealed(Path(local, LIST), KIND, VERSION, asdict(found))
        with _refused(f"cannot write {url}/{LIST}"):
            files.pipe_file(f"{root}/{LIST}", Path(local, LIST).read_bytes())
    return found


def make_parents(files: Any, place: str) -> None:
    """Make the directories above a file of an fsspec file system.

    Object stores have none, and their paths begin with the name of a bucket, which nobody has asked to be made; paths
    of all others begin with "/".
    """
    if place.startswith("/"):
        files.makedirs(place.rpartition("/")[0], exist_ok=True)


def fetch(url: str, out: Path) -> Published:
    """Copy what is published at a URL to the new directory `out`, which appears complete or not at all.

    Raises:
        UserError: nothing is published there, or not all of it; a file has changed since; or `out` exists.
    """
    require_absent(out)
    files, root = _file_system(url)
    with atomic_directory(out) as partial:
        found = _listed(files, root, url)
        for name, written in found.files.items():
            place = partial / name
            place.parent.mkdir(parents=True, exist_ok=True)
            with _refused(f"cannot read {url}/{name}"):
                files.get_file(f"{root}/{name}", str(place))
            if Written.of(place) != written:
                raise UserError(f"{url}/{name} has changed since it was published: publish it again, at another URL")
    return found


def _listed(files: Any, root: str, url: str) -> Published:
    with _refused(f"cannot read {url}"):
        if not files.exists(f"{root}/{LIST}"):
            raise UserError(
                f"{url} has no {LIST}: nothing is published there, or publishing it was interrupted; publish it again"
            )
        data = files.cat_file(f"{root}/{LIST}")
    with tempfile.TemporaryDirectory() as local:
        Path(local, LIST).write_bytes(data)
        try:
            found, _ = read_sealed(Path(local, LIST), KIND, VERSION, Published, "publish it again, at another URL")
        except UserError as error:
            raise UserError(str(error).replace(local, url)) from None
    for name in found.files:
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or not parts.name:
            raise UserError(f"{url}/{LIST} names the file {shown(name)}, outside of its directory: do not trust it")
    return found


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    if "://" not in url:
        raise UserError(f"expected a URL, such as s3://bucket/name, got {shown(url, 200)}")
    with _refused(f"cannot use {url}"):
        files, root = fsspec.url_to_fs(url)
    return files, str(root).rstrip("/")


@contextmanager
def _refused(what: str) -> Iterator[None]:
    with refused_by_library(what, ADVICE):
        yield
