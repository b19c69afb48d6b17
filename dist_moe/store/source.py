"""Reads the files of a store, from a directory or a URL that fsspec can open. Nothing here writes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from dist_moe.errors import refused_by_library

ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
ADVICE = "check the path, and what its file system needs (rights, a connection, a package)"


class Source(Protocol):
    """Read access to files by key; a key is a path relative to the store, with "/"."""

    place: str
    """The path or URL as the user gave it."""

    def read(self, key: str) -> bytes | None:
        """Contents of a file; None if it does not exist."""

    def files(self, prefix: str) -> list[str]:
        """Sorted keys of all files below `prefix`, without hidden files."""

    def exists(self) -> bool:
        """Whether anything exists at `place`."""


class Directory:
    """A store on a local or mounted file system."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, str(path)

    def read(self, key: str) -> bytes | None:
        with refused_by_library(f"cannot read {self.place}", ADVICE, (OSError,)):
            try:
                return (self.path / key).read_bytes()
            except ABSENT:
                return None

    def files(self, prefix: str) -> list[str]:
        found = (self.path / prefix).rglob("*")
        return _visible(path.relative_to(self.path).as_posix() for path in found if path.is_file())

    def exists(self) -> bool:
        return self.path.exists()


class Remote:
    """A store behind an fsspec URL, such as s3://bucket/masks.zarr."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.place = url
        with refused_by_library(f"cannot read {url}", ADVICE):
            self._files, self._root = fsspec.url_to_fs(url)

    def read(self, key: str) -> bytes | None:
        return self._ask(lambda: self._files.cat_file(f"{self._root}/{key}"), None)

    def files(self, prefix: str) -> list[str]:
        found = self._ask(lambda: self._files.find(f"{self._root}/{prefix}"), [])
        return _visible(path.removeprefix(self._root).lstrip("/") for path in found)

    def exists(self) -> bool:
        return bool(self._ask(lambda: self._files.exists(self._root), False))

    def _ask(self, question: Callable[[], Any], absent: Any) -> Any:
        with refused_by_library(f"cannot read {self.place}", ADVICE):
            try:
                return question()
            except ABSENT:
                return absent


def open_source(place: str | Path) -> Source:
    """The source for a path, or for a URL (with "://")."""
    return Remote(place) if isinstance(place, str) and is_url(place) else Directory(Path(place))


def is_url(place: str) -> bool:
    """Whether `place` is a URL for fsspec, and not a directory."""
    return "://" in place


def _visible(keys: Iterator[str]) -> list[str]:
    return sorted(key for key in keys if not any(part.startswith(".") for part in key.split("/")))
