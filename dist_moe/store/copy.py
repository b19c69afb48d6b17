"""Copies a store, and compares each file with its digest on the way.

zarr.json is copied last, so what a killed copy leaves does not open as a store.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from dist_moe.errors import UserError, refused_by_library
from dist_moe.files import atomic_directory
from dist_moe.published import make_parents
from dist_moe.store.files import damaged
from dist_moe.store.layout import ROOT_METADATA, SUMS, root_digest, sha256
from dist_moe.store.source import is_url, open_source
from dist_moe.store.store import Store


def copy_store(store: Store, place: str) -> None:
    """Copy to `place`, a new directory or a URL that fsspec can write to.

    A directory appears there complete, or not at all.

    Raises:
        UserError: `place` exists, it cannot be written, or the store is damaged.
    """
    if open_source(place).exists():
        raise UserError(f"{place} exists: choose another place or remove it")
    if is_url(place):
        _put_all(store, _remote_writer(place))
        return
    path = Path(place)
    with atomic_directory(path) as directory:
        _put_all(store, _directory_writer(directory))


def _put_all(store: Store, put: Callable[[str, bytes], None]) -> None:
    for key, data in _checked_files(store):
        put(key, data)


def _checked_files(store: Store) -> Iterator[tuple[str, bytes]]:
    files = store.files
    for array, digest in files.array_digests.items():
        for file in sorted(files.sums(array)):
            yield f"{array}/{file}", files.read(array, file)
        sums = files.source.read(f"{array}/{SUMS}")
        if sums is None or sha256(sums) != digest:
            raise damaged(str(store.path), f"array {array} has changed since it was written ({SUMS})")
        yield f"{array}/{SUMS}", sums
    root = files.source.read(ROOT_METADATA)
    if root is None or root_digest(json.loads(root), files.array_digests) != store.digest:
        raise damaged(str(store.path), f"{ROOT_METADATA} has changed since the copy began")
    yield ROOT_METADATA, root


def _directory_writer(directory: Path) -> Callable[[str, bytes], None]:
    def put(key: str, data: bytes) -> None:
        path = directory / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return put


def _remote_writer(url: str) -> Callable[[str, bytes], None]:
    import fsspec

    files, root = fsspec.url_to_fs(url)

    def put(key: str, data: bytes) -> None:
        path = f"{root}/{key}"
        with refused_by_library(
            f"cannot write {url}", "make sure that it can be written, and first remove what is there"
        ):
            make_parents(files, path)
            files.pipe_file(path, data)

    return put
