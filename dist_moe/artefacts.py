"""Reads and writes sealed files: JSON files that contain their own digest, and digests of the files beside them.

A digest detects damage and edits by hand. It is not a signature, so it does not say who wrote a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from dist_moe.errors import UserError, shown
from dist_moe.files import hash_file, parse_json, read_json, write_json_atomic

Kind = TypeVar("Kind")

EXACT = ConfigDict(extra="forbid")
"""For a dataclass as `__pydantic_config__`: unknown keys are an error."""


class OtherVersionError(UserError):
    """A file of ours, of another version of its format."""


@dataclass(frozen=True, slots=True)
class Written:
    """Digest and size of a file when it was written."""

    sha256: str
    num_bytes: int

    @classmethod
    def of(cls, path: Path) -> Written:
        return cls(hash_file(path), path.stat().st_size)


def write_sealed(path: Path, kind: str, version: int, values: Mapping[str, Any]) -> str:
    """Write `values` (JSON) with `format`, `version` and their digest, `sha256`; returns the digest."""
    document = {"format": kind, "version": version, **values}
    digest = _digest(document)
    write_json_atomic(path, {**document, "sha256": digest})
    return digest


def read_sealed(
    path: Path, kind: str, version: int, of: type[Kind], advice: str, other_version: str | None = None
) -> tuple[Kind, str]:
    """Read what `write_sealed` wrote, as the dataclass `of`; returns it and its digest.

    Raises:
        UserError: the file cannot be read, is of another kind or version, has changed since it was written, or has
            other
            keys or types than `of`. The message ends with `advice`, for another version with `other_version`.
    """
    try:
        document = read_json(path, "an index")
    except UserError as error:
        raise UserError(f"{error}: {advice}") from None
    if not isinstance(document, dict) or document.pop("format", None) != kind:
        raise UserError(f"{path}: expected a JSON object with format '{kind}': {advice}")
    found = document.pop("version", None)
    if found != version or type(found) is not int:
        raise OtherVersionError(
            f"{path}: expected '{kind}' version {version}, found version {shown(found)}: {other_version or advice}"
        )
    written = document.pop("sha256", None)
    if _digest({"format": kind, "version": version, **document}) != written:
        raise UserError(f"{path} is damaged: its contents do not match its digest: {advice}")
    return checked(of, document, str(path), advice), written


def checked(of: type[Kind], value: object, what: str, advice: str) -> Kind:
    """Plain values as a dataclass; types are compared strictly, as in JSON.

    Raises:
        UserError: names the first key that is missing, unknown or of the wrong type.
    """
    try:
        made: Kind = _adapter(cast(Any, of)).validate_json(json.dumps(value), strict=True)
        return made
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "its contents"
        said = {"missing": "is missing", "unexpected_keyword_argument": "is not known"}.get(
            first["type"], f"is {shown(first['input'])}: {first['msg']}"
        )
        raise UserError(f"{what}: {key} {said}: {advice}") from None


def checked_lines(of: type[Kind], lines: Iterable[str], path: Path, advice: str) -> Iterator[Kind]:
    """The lines of a JSON Lines file, each as a dataclass.

    Raises:
        UserError: names the first line that is not JSON, or whose keys or types are others.
    """
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        yield checked(of, parse_json(line, where), where, advice)


def check_files(directory: Path, written: Mapping[str, Written], besides: Iterable[str], advice: str) -> None:
    """Compare every byte of a directory's files with what was written; hidden files are ignored.

    Args:
        directory: of the files.
        written: digests and sizes by name.
        besides: names of files that may also be there.
        advice: what the user should do if something is wrong.

    Raises:
        UserError: names the first file that is missing, changed or unexpected.
    """
    for name, expected in written.items():
        path = directory / name
        if Path(name).name != name:
            raise UserError(f"{directory}: {shown(name)} is not a file name: {advice}")
        if not path.is_file():
            raise UserError(f"{path} is missing: {advice}")
        if path.stat().st_size != expected.num_bytes or hash_file(path) != expected.sha256:
            raise UserError(f"{path} has changed since it was written: {advice}")
    known = {*written, *besides}
    for path in sorted(directory.iterdir()):
        if path.name not in known and not path.name.startswith("."):
            raise UserError(f"{path} does not belong there: {advice}")


def _digest(document: Mapping[str, Any]) -> str:
    return sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


@lru_cache
def _adapter(of: Any) -> TypeAdapter[Any]:
    return TypeAdapter(of)
