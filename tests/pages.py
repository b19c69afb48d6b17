"""A page as its parts: tables by their captions, headings, addresses; what is no sound HTML is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "br", "hr", "img", "input", "link"}


@dataclass
class Table:
    caption: str
    lines: list[list[str]] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)

    @property
    def head(self) -> list[str]:
        return self.lines[0]

    def line(self, first: str) -> dict[str, str]:
        """The line with this name, by the columns' names."""
        (found,) = [line for line in self.lines[1:] if line[0] == first]
        return dict(zip(self.head, found, strict=True))

    def column(self, name: str) -> list[str]:
        place = self.head.index(name)
        return [line[place] for line in self.lines[1:]]


class Page(HTMLParser):
    """Reads a page; `elements` are (name, attributes) in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[Table] = []
        self.headings: list[tuple[int, str]] = []
        self.quotes: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self._table: Table | None = None
        self._words: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), (tag, attrs)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._table = Table("")
        elif tag == "tr":
            assert self._table is not None
            self._table.lines.append([])
        if tag == "th":
            assert self._table is not None
            self._table.scopes.append(attributes["scope"] or "")
        if tag in ("caption", "th", "td", "h1", "h2", "h3", "h4", "blockquote"):
            self._words = []

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag
        words = "".join(self._words).replace("\u00a0", " ")
        if tag == "caption":
            assert self._table is not None
            self._table.caption = words
            self.tables.append(self._table)
        elif tag in ("th", "td"):
            assert self._table is not None
            self._table.lines[-1].append(words)
        elif tag in ("h1", "h2", "h3", "h4"):
            self.headings.append((int(tag[1]), words))
        elif tag == "blockquote":
            self.quotes.append(words)

    def handle_data(self, data: str) -> None:
        self._words.append(data)
        if self._open and self._open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def addresses(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.elements if "id" in attributes]

    def table(self, beginning: str) -> Table:
        """The one whose caption begins so."""
        (found,) = [table for table in self.tables if table.caption.startswith(beginning)]
        return found
