"""Files that are either whole or not there: directories and JSON are written beside their final place and renamed.

A process that is killed while it writes leaves a hidden `.NAME.partial-*` beside the final path, never a half-written
NAME. Such a leftover is garbage and may be deleted.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dist_moe.errors import UserError


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_directory(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside `final` that becomes `final` when the block ends well.

    What was written is on disk (fsync) before the rename; a block that raises leaves nothing.
    With `overwrite` an existing `final` stays until the new one is complete.

    Raises:
        UserError: `final` exists and `overwrite` is false, or another process made it meanwhile.
    """
    if final.exists() and not overwrite:
        raise _exists(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = _sibling(final, "partial")
    partial.mkdir()
    try:
        yield partial
        sync_tree(partial)
        publish(partial, final, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def publish(directory: Path, final: Path, *, overwrite: bool) -> None:
    """Rename a complete directory to `final`, in place of an earlier one if `overwrite`.

    Raises:
        UserError: `final` exists and `overwrite` is false.
    """
    if overwrite and final.exists():
        replaced = _sibling(final, "replaced")
        final.rename(replaced)
        directory.rename(final)
        shutil.rmtree(replaced)
    else:
        _rename_to_new(directory, final)
    sync(final.parent)


def sync_tree(path: Path) -> None:
    """Have every file and directory under `path` on disk (fsync)."""
    for directory, _, names in os.walk(path):
        for name in names:
            sync(Path(directory, name))
        sync(Path(directory))


def write_json_atomic(path: Path, value: object) -> None:
    """Write `value` as indented JSON; a reader sees the old file or the new one, never a part."""
    write_text_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file; a reader sees the old one or the new one, never a part."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file; a reader sees the old one or the new one, never a part."""
    partial = _sibling(path, "partial")
    try:
        partial.write_bytes(data)
        sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    sync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file; it is in the file, and nothing of it in a buffer, when this returns or raises."""
    with path.open("ab") as stream:
        stream.write(f"{line}\n".encode())


MENDABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
    | {errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG}
)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While a file or directory is written: a disk that is full or not to be written is a `UserError` that says so.

    Other errors of the system are bugs of ours and pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        raise UserError(
            f"cannot write {error.filename or path}: {error.strerror}; when that is mended, give the same command again"
        ) from None


def _sibling(final: Path, kind: str) -> Path:
    # Not tempfile.mkdtemp: its mode 0700 would stay on the final directory and shut the group out.
    return final.parent / f".{final.name}.{kind}-{secrets.token_hex(6)}"


def _rename_to_new(partial: Path, final: Path) -> None:
    try:
        partial.rename(final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise _exists(final) from None
        raise


def _exists(final: Path) -> UserError:
    return UserError(f"{final} exists: choose another path or remove it")


def sync(path: Path) -> None:
    """Have a file's bytes, or a directory's entries, on disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
