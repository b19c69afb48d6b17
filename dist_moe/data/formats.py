"""The file formats of prompts: .jsonl, .csv, .parquet, and a directory that `datasets.save_to_disk` wrote.

Each reader yields a place (line, or row from 1) and the cells by column name; what a row means, and so which
columns there are, is `rows`' matter.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from dist_moe.errors import UserError

Row = Mapping[str, Any]


def read_rows(path: Path, columns: Collection[str]) -> Iterator[tuple[int, Row]]:
    """Line (in binary formats: row) number from 1, and the row's cells in those of `columns` that the file has.

    Other columns are left out in every format alike. Raises UserError for what cannot be read.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; data.paths takes .jsonl, .csv and .parquet files and saved datasets")
    reader = _read_saved_dataset if path.is_dir() else _READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{path}: unknown extension {path.suffix!r}; expected {', '.join(_READERS)} or a saved dataset")
    num_rows = 0
    try:
        for number, row in reader(path, columns):
            num_rows += 1
            yield number, {name: cell for name, cell in row.items() if name in columns}
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text: {error.reason} at byte {error.start}; save the file as UTF-8"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or str(error).splitlines()[0]}") from error
    if num_rows == 0:
        raise UserError(f"{path}: no rows; fill the file or remove it from data.paths")


def _read_jsonl(path: Path, columns: Collection[str]) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, text in enumerate(file, start=1):
            if not text.strip():
                continue
            row = _json(text.rstrip(), f"{path}:{number}: ")
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: expected one JSON object a line, got a {type(row).__name__}")
            yield number, row


def _read_csv(path: Path, columns: Collection[str]) -> Iterator[tuple[int, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        header: list[str] = []
        end = 0
        try:
            for cells in reader:
                number, end = end + 1, reader.line_num  # a cell may span lines: name the row's first
                if not cells:
                    continue
                if not header:
                    header = cells
                    continue
                if len(cells) != len(header):
                    raise UserError(f"{path}:{number}: {len(cells)} cells, but the header has {len(header)} columns")
                row: dict[str, Any] = dict(zip(header, cells, strict=True))
                if row.get("messages"):
                    row["messages"] = _json(row["messages"], f"{path}:{number}: `messages`: ")
                yield number, row
        except csv.Error as error:
            raise UserError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}not valid JSON: {error.msg} at column {error.colno}") from error


def _read_parquet(path: Path, columns: Collection[str]) -> Iterator[tuple[int, Row]]:
    from pyarrow import ArrowException, parquet

    try:
        file = parquet.ParquetFile(path)
        table = file.read([name for name in file.schema_arrow.names if name in columns])
    except ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0]}") from error
    yield from enumerate(table.to_pylist(), start=1)


def _read_saved_dataset(path: Path, columns: Collection[str]) -> Iterator[tuple[int, Row]]:
    import datasets

    dataset = datasets.load_from_disk(path)
    if isinstance(dataset, datasets.DatasetDict):
        if len(dataset) != 1:
            splits = ", ".join(str(path / split) for split in dataset)
            raise UserError(f"{path}: {len(dataset)} splits; name those to use in data.paths: {splits}")
        (dataset,) = dataset.values()
    dataset = dataset.select_columns([name for name in dataset.column_names if name in columns])
    # class labels are stored as numbers and meant as names; -1 is no label
    classes = {name: kind for name, kind in dataset.features.items() if isinstance(kind, datasets.ClassLabel)}
    for number, row in enumerate(dataset, start=1):
        names = {name: kind.int2str(row[name]) for name, kind in classes.items() if row[name] not in (None, -1)}
        yield number, row | names


_READERS = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet}
