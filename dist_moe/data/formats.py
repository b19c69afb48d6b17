"""Reads prompt files: .jsonl, .csv, .parquet, directories written by `datasets.save_to_disk`, and datasets of the hub.

Each reader yields a place (line, or row from 1) and the cells by column name. `rows.py` interprets them.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dist_moe.errors import UserError, refused_by_library, shown
from dist_moe.files import parse_json, read_json
from dist_moe.hub.datasets import dataset_directory
from dist_moe.hub.names import dataset_of

Row = Mapping[str, Any]
MENDING = "data.paths takes .jsonl, .csv and .parquet files, saved datasets, and hf:OWNER/NAME:SPLIT"


def read_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[int, Row, Sequence[str]]]:
    """Yield for each row: line number (in binary formats the row number) from 1, its cells in those of `columns` that
    the file has, and the names of all columns of the file.

    Raises:
        UserError: the file cannot be read.
    """
    reader = _reader(path)
    num_rows = 0
    try:
        for number, row, names in reader(path, columns):
            num_rows += 1
            yield number, {name: cell for name, cell in row.items() if name in columns}, names
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or str(error).splitlines()[0]}") from error
    if num_rows == 0:
        raise UserError(f"{path}: no rows; fill the file or remove it from data.paths")


def _reader(path: Path) -> Any:
    if dataset_of(str(path)) is not None:
        return _read_hub_dataset
    try:
        path.stat()
    except OSError as error:
        target = f" (it links to {path.readlink()})" if path.is_symlink() else ""
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"cannot read: {error.strerror}"
        raise UserError(f"{path}: {reason}{target}; {MENDING}") from None
    if path.is_dir():
        return _read_saved_dataset
    if path.suffix not in _READERS:
        raise UserError(f"{path}: unknown extension {path.suffix!r}; expected {', '.join(_READERS)} or a saved dataset")
    if not path.is_file():
        raise UserError(f"{path}: not a regular file, which every rank can read for itself; {MENDING}")
    return _READERS[path.suffix]


def _lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their line ends, without a byte order mark.

    Raises:
        UserError: a line is not UTF-8 text; says which.
    """
    # A byte that is not UTF-8 reads as half of a surrogate pair, which no UTF-8 text has.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        for number, text in enumerate(file, start=1):
            if not text.isascii():
                byte = next((character for character in text if "\udc80" <= character <= "\udcff"), None)
                if byte is not None:
                    raise UserError(
                        f"{path}:{number}: not UTF-8 text: byte {ord(byte) - 0xDC00:#x}; save the file as UTF-8"
                    )
            if "\0" in text:
                raise UserError(f"{path}:{number}: has a NUL byte; save the file as UTF-8 text")
            yield text


def _read_jsonl(path: Path, columns: Collection[str]) -> Iterator[tuple[int, Row, Sequence[str]]]:
    for number, text in enumerate(_lines(path), start=1):
        if not text.strip():
            continue
        row = parse_json(text.rstrip(), f"{path}:{number}")
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: expected one JSON object a line, got a {type(row).__name__}")
        yield number, row, tuple(row)


def _read_csv(path: Path, columns: Collection[str]) -> Iterator[tuple[int, Row, Sequence[str]]]:
    csv.field_size_limit(sys.maxsize)  # of the process; the csv module's own limit is 131,072 characters a cell
    reader = csv.reader(_lines(path), strict=True)
    header: list[str] = []
    end = 0
    try:
        for cells in reader:
            number, end = end + 1, reader.line_num  # a cell may span lines: name the row's first
            if not cells:
                continue
            if not header:
                header = cells
                _require_commas(path, header, columns)
                _require_once(path, header, columns)
                continue
            if len(cells) != len(header):
                raise UserError(f"{path}:{number}: {len(cells)} cells, but the header has {len(header)} columns")
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            if row.get("messages"):
                row["messages"] = parse_json(row["messages"], f"{path}:{number}: `messages`")
            yield number, row, header
    except csv.Error as error:
        raise UserError(f"{path}:{end + 1}: not valid CSV: {error}; is a quote left open or not doubled?") from error


def _read_parquet(path: Path, columns: Collection[str]) -> Iterator[tuple[int, Row, Sequence[str]]]:
    from pyarrow import parquet

    what, advice = f"{path}: not a readable Parquet file", "write it again, with text in its columns"
    with refused_by_library(what, advice):
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
    _require_once(path, names, columns)
    with refused_by_library(what, advice):
        rows = file.read([name for name in names if name in columns]).to_pylist()
    for number, row in enumerate(rows, start=1):
        yield number, row, names


def _read_saved_dataset(path: Path, columns: Collection[str]) -> Iterator[tuple[int, Row, Sequence[str]]]:
    import datasets

    what, advice = f"{path}: not a readable saved dataset", MENDING
    state = path / "state.json"
    found = read_json(state, "the saved dataset's state") if state.is_file() else None
    if isinstance(found, dict) and found.get("_data_files") == []:
        return  # saved without a row, which datasets 5 does not load
    with refused_by_library(what, advice):
        dataset = datasets.load_from_disk(path)
    if isinstance(dataset, datasets.DatasetDict):
        if len(dataset) != 1:
            splits = ", ".join(str(path / split) for split in dataset) or "it has none"
            raise UserError(f"{path}: {len(dataset)} splits; name those to use in data.paths: {splits}")
        (dataset,) = dataset.values()
    yield from _dataset_rows(path, dataset, columns, f"{path}:{{}}: not a readable row of a saved dataset", advice)


def _read_hub_dataset(path: Path, columns: Collection[str]) -> Iterator[tuple[int, Row, Sequence[str]]]:
    import datasets

    named = dataset_of(str(path))
    assert named is not None
    place = dataset_directory(named, str(path))
    advice = "name one of its configurations and splits, as hf:OWNER/NAME/CONFIG:SPLIT"
    with refused_by_library(f"{path}: not a readable dataset", advice):
        dataset = datasets.load_dataset(str(place), name=named.config, split=named.split)
    yield from _dataset_rows(path, dataset, columns, f"{path}:{{}}: not a readable row of the dataset", advice)


def _dataset_rows(
    path: Path, dataset: Any, columns: Collection[str], what: str, advice: str
) -> Iterator[tuple[int, Row, Sequence[str]]]:
    """The rows of a `datasets.Dataset`; `what` is for messages, with a place for the row's number."""
    import datasets

    names = dataset.column_names
    _require_once(path, names, columns)
    if not len(dataset):
        return
    with refused_by_library(str(path), advice):
        dataset = dataset.select_columns([name for name in names if name in columns])
        rows = iter(dataset)
    # class labels are stored as numbers and meant as names; -1 is no label
    classes = {name: kind for name, kind in dataset.features.items() if isinstance(kind, datasets.ClassLabel)}
    for number in range(1, len(dataset) + 1):
        with refused_by_library(what.format(number), advice):
            row = next(rows)
            named = {name: kind.int2str(row[name]) for name, kind in classes.items() if row[name] not in (None, -1)}
        yield number, row | named, names


def _require_commas(path: Path, header: Sequence[str], columns: Collection[str]) -> None:
    for mark in (";", "\t"):
        if len(header) == 1 and set(header[0].split(mark)) & {*columns} and mark in header[0]:
            raise UserError(
                f"{path}:1: its cells are separated by {mark!r}, expected commas: save the file as CSV again"
            )


def _require_once(path: Path, names: Sequence[str], columns: Collection[str]) -> None:
    twice = [name for name in columns if names.count(name) > 1]
    if twice:
        raise UserError(f"{path}: {names.count(twice[0])} columns are called `{twice[0]}`: keep one")


def listed(names: Sequence[str], most: int = 12) -> str:
    """Column names as text for a message."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(shown(name, 30)[1:-1] for name in names[:most]) or "none") + more


_READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
