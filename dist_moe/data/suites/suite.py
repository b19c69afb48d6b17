"""What a suite is, and how its file is read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dist_moe.data.formats import Row, listed, read_rows
from dist_moe.errors import UserError, shown
from dist_moe.registry import Registry


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a suite's file (in binary formats: a row, from 1)."""

    number: int
    cells: Row
    where: str
    """"file:line"."""

    def text(self, column: str) -> str | None:
        """A cell that has text; None where it is empty.

        Raises:
            UserError: it is something else.
        """
        value = self.cells.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str):
            raise UserError(f"{self.where}: `{column}` must be text, got {shown(value)}")
        return value

    def words(self, column: str, meanings: Mapping[str, str]) -> str | None:
        """What a cell's word means; None where it is empty.

        Raises:
            UserError: it is another word.
        """
        value = self.text(column)
        if value is not None and value not in meanings:
            raise UserError(f"{self.where}: `{column}` must be {' or '.join(meanings)}, got {shown(value)}")
        return None if value is None else meanings[value]

    def truth(self, column: str) -> bool:
        """A cell that is true or false, also as text.

        Raises:
            UserError: it is neither.
        """
        value = self.cells.get(column)
        named = {"true": True, "false": False}.get(value.strip().lower()) if isinstance(value, str) else value
        if not isinstance(named, bool):
            raise UserError(f"{self.where}: `{column}` must be true or false, got {shown(value)}")
        return named


class Suite(ABC):
    """One suite. Rows that it gives have `prompt` and `label`, and where the file has them `id`, `category`, `pair_id`.

    Answers that a file holds are never taken as responses: some are harmful.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]
    """Columns without which it is no file of this suite."""
    may_have: ClassVar[tuple[str, ...]] = ()
    """Further columns that are read."""
    others: ClassVar[Mapping[str, str]] = {}
    """Words in a file's name that say that it is another suite's, and that suite."""

    @abstractmethod
    def rows(self, lines: Sequence[Line]) -> Iterator[tuple[Line, Row]]:
        """Our rows, each with the line that it comes from; a line that has no label gives none."""


SUITES: Registry[Suite] = Registry("suite", "dist_moe.data.suites")


def suite_of(path: Path) -> tuple[str, Path] | None:
    """The suite and the file of `NAME=FILE`; None: the path is that of a file of our own.

    Raises:
        UserError: there is no suite of that name, and no such file.
    """
    name, mark, file = str(path).partition("=")
    if not mark or "/" in name or path.exists():
        return None
    try:
        return SUITES.find(name).name, Path(file)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_suite(name: str, path: Path) -> Iterator[tuple[int, Row, Sequence[str]]]:
    """As `read_rows`: the line's number, the row as our own files have it, and the names of its columns.

    Ids begin with the suite's name. Raises UserError for a file that cannot be read, or is not of this suite.
    """
    suite: Suite = SUITES.find(name)()
    for word, other in suite.others.items():
        if word in path.name.lower():
            raise UserError(f"{path}: by its name it is no file of {name}, whose labels differ; use {other}={path}")
    lines = []
    for number, cells, names in read_rows(path, (*suite.needs, *suite.may_have)):
        absent = [column for column in suite.needs if column not in names]
        if absent:
            raise UserError(
                f"{path}:{number}: a file of {name} has the columns {', '.join(suite.needs)}; here {', '.join(absent)} "
                f"{'is' if len(absent) == 1 else 'are'} missing; the columns there are {listed(names)}"
            )
        lines.append(Line(number, cells, f"{path}:{number}"))
    is_empty = True
    for line, row in suite.rows(lines):
        is_empty = False
        given = {key: value for key, value in row.items() if value is not None}
        if "id" in given:
            given["id"] = f"{name}:{given['id']}"
        yield line.number, given, tuple(given)
    if is_empty:
        raise UserError(f"{path}: none of its {len(lines)} rows has a label; is it the labelled part of {name}?")
