"""Writes files and directories so that they are either complete or absent, and reads users' text and JSON files.

Everything is written beside its final place and renamed. A process that is killed while writing leaves a hidden
`.NAME.partial-*`, never a half-written NAME; such leftovers may be deleted.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from dist_moe.errors import UserError, shown

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes in a part of a path, and in all of it, on all usual systems."""


def is_too_long(path: str) -> bool:
    """Whether a path is too long for the file system, so that `Path.is_file`, `exists` and so on would raise."""
    encoded = os.fsencode(path)
    return len(encoded) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in encoded.split(b"/"))


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path, what: str, *, most: int | None = None) -> str:
    """The text of a user's file, without a byte order mark.

    Args:
        path: a regular file. (What a pipe or a device gives could not be read again by another rank.)
        what: what the file is, for messages: "the config file".
        most: maximum number of characters; None: no limit.

    Raises:
        UserError: the file is missing, unreadable, not a regular file, not UTF-8, or too long.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path}: cannot read {what}: it is not a regular file")
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(-1 if most is None else most + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot read {what}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {what} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if most is not None and len(text) > most:
        raise UserError(f"{path}: {what} has more than {most:,} characters: is it the right file?")
    return text


def read_json(path: Path, what: str) -> Any:
    """The value of a user's JSON file, by `read_text` and `parse_json`."""
    return parse_json(read_text(path, what), str(path))


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. As in the standard, NaN and Infinity are errors; so is a key that occurs twice in an
    object.

    Raises:
        UserError: one line that begins with `where`, such as "prompts.jsonl:3", and with the line if there are several.
    """

    def refuse(constant: str) -> Any:
        raise UserError(f"{where}: not valid JSON: {constant} is not a JSON number; write null or leave the key out")

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(found)
        if len(value) < len(found):
            keys = [key for key, _ in found]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"{where}: the key {shown(twice)} occurs twice in one object: keep one")
        return value

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=pairs)
    except UserError:
        raise
    except json.JSONDecodeError as error:
        line = f":{error.lineno}" if "\n" in text else ""
        raise UserError(f"{where}{line}: not valid JSON: {error.msg} at column {error.colno}") from error
    except RecursionError:
        raise UserError(f"{where}: not readable JSON: nested too deep") from None
    except ValueError as error:
        raise UserError(f"{where}: not readable JSON: a number has too many digits") from error


def hash_first_lines(path: Path, number: int) -> str | None:
    """SHA-256 of a text file's first lines; None if there are fewer, or if the file is missing and lines are
    expected."""
    total, found = hashlib.sha256(), 0
    for line in first_lines(path, number):
        total.update(line)
        found += 1
    return total.hexdigest() if found == number else None


def first_lines(path: Path, number: int | None) -> Iterator[bytes]:
    """The first lines of a file with their ends, all if `number` is None; none if there is no file. They are bytes,
    because what a crash has left behind them need not be text."""
    if path.is_file():
        with path.open("rb") as stream:
            yield from islice(stream, number)


@contextmanager
def atomic_directory(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Context manager: yields an empty directory beside `final`, which becomes `final` at the normal end of the block.

    Its contents are on disk (fsync) before the rename. If the block raises, nothing is left, nor any parent directory
    that was made for `final`. With `overwrite`, an existing `final` stays until the new one is complete.

    Raises:
        UserError: `final` exists and `overwrite` is false, another process created it meanwhile, or it cannot be
            written.
    """
    with writing(final), _folder_of(final):
        if not overwrite:
            require_absent(final)
        partial = _sibling(final, "partial")
        partial.mkdir()
        try:
            yield partial
            sync_tree(partial)
            publish(partial, final, overwrite=overwrite)
        except BaseException:  # an interrupt too; nothing is swallowed
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def atomic_file(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Context manager: yields a path beside `final`; the file written there becomes `final` at the normal end of the
    block.

    Raises:
        UserError: `final` exists and `overwrite` is false, or it cannot be written.
    """
    with writing(final), _folder_of(final):
        if not overwrite:
            require_absent(final)
        partial = _sibling(final, "partial")
        try:
            yield partial
            sync(partial)
            partial.replace(final)
        finally:
            partial.unlink(missing_ok=True)
        sync(final.parent)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Context manager: yields an empty directory, whose files replace those in `folder` at the normal end of the block.

    Raises:
        UserError: `folder` cannot be written; its files are unchanged.
    """
    with writing(folder), _folder_of(folder):
        partial = _sibling(folder / "files" if folder.is_dir() else folder, "partial")
        partial.mkdir()
        try:
            yield partial
            sync_tree(partial)
            if not folder.exists():
                publish(partial, folder, overwrite=False)
                return
            for file in sorted(partial.iterdir()):
                file.replace(folder / file.name)
            sync(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def require_writable(final: Path) -> None:
    """Raise early if a file could not be written at the end of the work. Directories that are not there yet are made
    then.

    Raises:
        UserError: it is a directory; or its directory, or the one in which that would be made, is not writable.
    """
    with writing(final):
        if final.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
        folder = next(folder for folder in final.parents if folder.exists())
        probe = folder / _sibling(final, "partial").name
        try:
            probe.touch()
        finally:
            probe.unlink(missing_ok=True)


def require_absent(final: Path, advice: str = "choose another path or remove it") -> None:
    """Raise early if a place for a new file or directory is taken or cannot exist.

    Raises:
        UserError: it exists, if only as a broken link; its name is too long; or a part of its path is a file.
    """
    with writing(final):
        try:
            final.lstat()
        except FileNotFoundError:
            return
    raise UserError(f"{final} exists: {advice}")


@contextmanager
def _folder_of(final: Path) -> Iterator[None]:
    """Create the directory of `final`; if the block raises, remove the directories that were created."""
    made = [folder for folder in final.parents if not folder.exists()]
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:  # an interrupt too; nothing is swallowed
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def publish(directory: Path, final: Path, *, overwrite: bool) -> None:
    """Rename a complete directory to `final`, replacing an earlier one if `overwrite`.

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
    """Make sure that every file and directory under `path` is on disk (fsync)."""
    for directory, _, names in os.walk(path):
        for name in names:
            sync(Path(directory, name))
        sync(Path(directory))


def write_json_atomic(path: Path, value: object) -> None:
    """Write `value` as indented JSON; readers see the old file or the new one, never a part."""
    write_text_atomic(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file; readers see the old file or the new one, never a part."""
    write_bytes_atomic(path, text.encode())


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write a file; readers see the old file or the new one, never a part."""
    with atomic_file(path, overwrite=True) as partial:
        partial.write_bytes(data)


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file; when this returns or raises, nothing is left in a buffer."""
    with path.open("ab") as stream:
        stream.write(f"{line}\n".encode())


MENDABLE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE}
    | {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context manager for writing: a full or unwritable disk becomes a `UserError` that says so.

    Other errors of the system are bugs of ours, and pass.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        name = str(error.filename2 or error.filename or path)
        inside = name == str(path) or name.startswith(f"{path}{os.sep}")
        where = name if inside else path
        also = "" if inside or ".partial-" in name else f", at {name}"
        raise UserError(
            f"cannot write {where}: {error.strerror}{also}; solve that, then run the same command again"
        ) from None


def _sibling(final: Path, kind: str) -> Path:
    # Not tempfile.mkdtemp: its mode 0700 would stay on the final directory and shut the group out.
    # Cut, so that a name as long as the file system takes has room for the rest.
    return final.parent / f".{final.name[:40]}.{kind}-{secrets.token_hex(6)}"


def _rename_to_new(partial: Path, final: Path) -> None:
    try:
        partial.rename(final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            require_absent(final)
        raise


def sync(path: Path) -> None:
    """Make sure that a file's bytes, or a directory's entries, are on disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
