"""The argument parser of all commands: argparse, but every error is one line that suggests the nearest valid name."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from dist_moe.cli.settings import shown_settings
from dist_moe.errors import UserError, shown
from dist_moe.files import is_too_long

N = TypeVar("N", int, float)


class Parser(argparse.ArgumentParser):
    """An argparse parser that reports a wrong command line as a one-line `UserError`, without the usage text.

    The parsed namespace has the parser of the chosen command as its attribute `parser`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._given: list[str] = []
        self._sections: tuple[str, ...] = ()
        self._shows_settings = False
        self._intermixes = False
        self.set_defaults(parser=self)

    def take_settings(self, *sections: str, usage: str = "--config FILE [--SETTING VALUE ...]") -> None:
        """Accept settings as arguments; the help lists those of `sections`, of which "" is the top level.

        Options are then not abbreviated, as an abbreviation may be the name of a setting.
        """
        self._sections = sections
        self.allow_abbrev = False
        self.usage = f"{self.prog} {usage}"

    @property
    def takes_settings(self) -> bool:
        """Whether arguments that this parser does not know may be settings of the configuration."""
        return bool(self._sections)

    def intermixes(self) -> None:
        """Accept options between the items of a positional list."""
        self._intermixes = True

    def add_settings(self) -> None:
        """Add the settings as arguments, for help and completion only; `dist_moe.config` parses their values."""
        if not self._sections or self._shows_settings:
            return
        self._shows_settings = True
        groups = {name: self.add_argument_group(name or "top-level settings") for name in self._sections}
        for each in shown_settings():
            if each.section in groups:
                default = "required" if each.required else f"default: {json.dumps(each.default, ensure_ascii=False)}"
                groups[each.section].add_argument(
                    f"--{each.key}",
                    metavar=each.kind,
                    choices=each.choices or None,
                    help=f"{each.help} ({default})".replace("%", "%%"),
                )

    def format_help(self) -> str:
        """The help text, settings included."""
        self.add_settings()
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; also keeps the arguments, so that an error message can suggest a correction."""
        self._given = list(args or ())
        if self._intermixes:
            self._intermixes = False  # what follows calls this again
            try:
                return self.parse_known_intermixed_args(args, namespace)
            finally:
                self._intermixes = True
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise a one-line `UserError`. If a required option is missing, suggest the given option that resembles it."""
        program, *commands = self.prog.split()
        see = f"{self.prog} --help" if commands or program == "dist-moe" else "--help"
        missing = re.findall(r"--[\w-]+", message) if "are required: " in message else []
        if hints := [hint for word in self._given if word.startswith("--") and (hint := nearest(word, missing))]:
            message += hints[0]
        raise UserError(f"{message}{' ' if message.endswith('?') else '; '}see {see}")

    def refuse(self, unknown: Sequence[str]) -> None:
        """Raise a one-line `UserError` for the first unknown argument, if there is one."""
        if unknown:
            self.error(
                f"unrecognized arguments: {shown(unknown[0])[1:-1]}{nearest(unknown[0], self._option_string_actions)}"
            )

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            choices = [str(choice) for choice in action.choices]
            raise argparse.ArgumentError(
                action, f"{shown(value)} is none of {', '.join(choices)}{nearest(str(value), choices)}"
            )


def nearest(word: str, names: Iterable[str]) -> str:
    """The text "; did you mean X?" for the name most similar to `word`, or "" if none is similar."""
    found = get_close_matches(word, names, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def text(word: str) -> str:
    """A name, path or URL, not blank: a blank argument usually comes from an unset shell variable."""
    if not word.strip():
        raise argparse.ArgumentTypeError(f"{word!r} is blank: is a shell variable not set?")
    if "://" not in word and is_too_long(word):
        raise argparse.ArgumentTypeError(f"File name too long: {shown(word)}")
    return word


def path(word: str) -> Path:
    """A path, not blank."""
    return Path(text(word))


def suite(word: str) -> Path:
    """A published suite and its file, as `data.paths` takes them too."""
    name, mark, file = word.partition("=")
    if not (name and mark and file):
        raise argparse.ArgumentTypeError(f"expected NAME=FILE, such as xstest=xstest_prompts.csv, got {shown(word)}")
    return path(word)


def threshold(word: str) -> float:
    """A threshold of risk_diff, which lies between -1 and 1."""
    return _number(float, word, lambda number: -1 <= number < 1, "a number from -1 to below 1")


def share(word: str) -> float:
    """A number from 0 to 1."""
    return _number(float, word, lambda number: 0 <= number <= 1, "a number from 0 to 1")


def shares(word: str) -> tuple[float, ...]:
    """Numbers above 0 and up to 1, with commas between them, as 0.3,0.5,1."""
    expected = "numbers above 0 and up to 1, such as 0.3,0.5,1"
    return tuple(_number(float, each, lambda number: 0 < number <= 1, expected) for each in word.split(","))


def names(word: str) -> tuple[str, ...]:
    """Names with commas between them."""
    found = tuple(each.strip() for each in word.split(","))
    if not all(found):
        raise argparse.ArgumentTypeError(f"expected names with commas between them, got {shown(word)}")
    return found


def index(word: str) -> int:
    """A whole number from 0."""
    return _number(int, word, lambda number: number >= 0, "a whole number from 0")


def count(word: str) -> int:
    """A whole number from 1."""
    return _number(int, word, lambda number: number >= 1, "a whole number from 1")


def fraction(word: str) -> float:
    """A number between 0 and 1."""
    return _number(float, word, lambda number: 0 < number < 1, "a number between 0 and 1")


def seconds(word: str) -> float:
    """A time above 0, at most a day."""
    return _number(float, word, lambda number: 0 < number <= 86400, "a number of seconds above 0, at most 86400")


def rates(word: str) -> tuple[float, ...]:
    """Different numbers above 0, separated by commas."""
    expected = "learning rates separated by commas, such as 1e-5,3e-5,1e-4"
    found = tuple(_number(float, each, lambda number: 0 < number < inf, expected) for each in word.split(","))
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"expected different {expected}, got {shown(word)}")
    return found


def _number(kind: Callable[[str], N], word: str, allowed: Callable[[N], bool], expected: str) -> N:
    try:
        number = kind(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected {expected}, got {shown(word)}") from None
    if not allowed(number):  # nan is within no bounds
        raise argparse.ArgumentTypeError(f"expected {expected}, got {shown(word)}")
    return number
