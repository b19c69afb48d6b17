"""Files of routes: which records they hold, found once, and read again one at a time."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dist_moe.errors import UserError, refused_by_library, shown
from dist_moe.files import hash_file, parse_json
from dist_moe.routes.arrays import AGAIN, read_npy
from dist_moe.routes.record import Record, id_of, record_of

SUFFIXES = (".jsonl", ".npz")
MOST_BYTES = 1 << 32
"""Limit on one array of an .npz file: a million tokens of the largest models."""


@dataclass(frozen=True, slots=True)
class LineOf:
    """A line of a .jsonl file."""

    path: Path
    number: int
    start: int
    """Byte at which it begins."""

    @property
    def where(self) -> str:
        return f"{self.path}:{self.number}"

    def read(self) -> Record:
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            return record_of(_parsed(stream.readline(), self.where), self.where)


@dataclass(frozen=True, slots=True)
class ArraysOf:
    """The arrays of one prompt in an .npz file."""

    path: Path
    id: str
    fields: tuple[str, ...]

    @property
    def where(self) -> str:
        return f"{self.path}: {shown(self.id)}"

    def read(self) -> Record:
        arrays = {}
        with _opened(self.path) as archive:
            for field in self.fields:
                arrays[field] = _array(archive, f"{self.id}/{field}.npy", f"{self.path}: the array {self.id}/{field}")
        return record_of(arrays, self.where)


@dataclass(frozen=True, slots=True)
class RouteFiles:
    """Where the records of the prompts that are asked for are; each is read when it is needed."""

    places: Mapping[str, LineOf | ArraysOf]
    facts: tuple[dict[str, str], ...]
    """Name and SHA-256 of each file."""
    num_others: int
    """Records of prompts that nobody asked for."""

    @staticmethod
    def find(paths: Sequence[Path], wanted: Collection[str]) -> RouteFiles:
        """Read the files through once, and remember where the records of the prompts are.

        Raises:
            UserError: a file cannot be read, a prompt has two records, or one of `wanted` has none.
        """
        places: dict[str, LineOf | ArraysOf] = {}
        facts, ids, num_others = [], set(wanted), 0
        for path in paths:
            digest, found = _found(path)
            facts.append({"name": path.name, "sha256": digest})
            for name, place in found:
                if name in places:
                    raise UserError(
                        f"{place.where}: the prompt {shown(name)} is already in {places[name].where}: keep one of them"
                    )
                if name in ids:
                    places[name] = place
                else:
                    num_others += 1
        missing = [name for name in wanted if name not in places]
        if missing:
            raise UserError(
                f"{', '.join(map(str, paths))}: no routes of {len(missing)} of {len(ids)} prompts, such as "
                f"{shown(missing[0])}: ask the server for them, and give those files too"
            )
        return RouteFiles(places, tuple(facts), num_others)


def _found(path: Path) -> tuple[str, list[tuple[str, LineOf | ArraysOf]]]:
    """The SHA-256 of a file, and the id and place of each record."""
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"{path}: unknown extension {path.suffix!r}: expected a file of routes, {' or '.join(SUFFIXES)}"
        )
    with refused_by_library(f"{path}: cannot read the routes", "check the path and its permissions", (OSError,)):
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: cannot read the routes: it is not a regular file")
        return _lines(path) if path.suffix == ".jsonl" else (hash_file(path), _arrays(path))


def _lines(path: Path) -> tuple[str, list[tuple[str, LineOf | ArraysOf]]]:
    total, start = hashlib.sha256(), 0
    places: list[tuple[str, LineOf | ArraysOf]] = []
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            place = LineOf(path, number, start)
            total.update(line)
            start += len(line)
            if line.strip():
                places.append((id_of(_parsed(line, place.where), place.where), place))
    return total.hexdigest(), places


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    with refused_by_library(f"{where}: not UTF-8 text", "save the file as UTF-8", (UnicodeDecodeError,)):
        text = line.decode("utf-8-sig")
    value = parse_json(text.rstrip(), where)
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected one JSON object a line, got a {type(value).__name__}")
    return value


def _arrays(path: Path) -> list[tuple[str, LineOf | ArraysOf]]:
    fields: dict[str, list[str]] = {}
    with _opened(path) as archive:
        names = archive.namelist()
    for name in names:
        of, slash, field = name.removesuffix(".npy").rpartition("/")
        if not slash or not of:
            raise UserError(
                f"{path}: the array {shown(name.removesuffix('.npy'))} has another name than ID/FIELD, such as "
                "ID/routed_experts"
            )
        if field in fields.setdefault(of, []):
            raise UserError(f"{path}: the array {of}/{field} is there twice: keep one of them")
        fields[of].append(field)
    return [(of, ArraysOf(path, of, tuple(found))) for of, found in fields.items()]


def _array(archive: zipfile.ZipFile, name: str, where: str) -> np.ndarray:
    size = archive.getinfo(name).file_size
    if size > MOST_BYTES:
        raise UserError(f"{where} is of {size:,} bytes, and no prompt's routes are of more than {MOST_BYTES:,}")
    with archive.open(name) as stream:
        return read_npy(stream, size, where)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    kinds = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
    with refused_by_library(f"{path}: not a whole .npz file", AGAIN, kinds), zipfile.ZipFile(path) as archive:
        yield archive
