"""Exceptions that users see as one line without a traceback, and our one warning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Wrong input. The message says what is wrong, where, what was expected, and what to do.

    The command line prints it as `dist-moe: error: ...` and exits with status 2. Other exceptions are bugs and keep
    their traceback.
    """


class LostRankError(RuntimeError):
    """Another process of the job has died, so this one cannot continue. One line, and exit status 1."""


class UntestedVersionWarning(UserWarning):
    """The version of a library is outside the tested range."""


def shown(value: object, width: int = 60) -> str:
    """A value for a message: its repr, cut to `width` characters."""
    if isinstance(value, str) and len(value) > width:
        return repr(f"{value[: width - 3]}...")
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


@contextmanager
def refused_by_library(what: str, advice: str, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """Context manager: an exception that a library raises on a user's input becomes a one-line `UserError`, "what (what
    the library says): advice".

    Only the library's call belongs inside, so that bugs of ours keep their traceback. Libraries that read
    configurations, templates and tables raise all kinds of exceptions on wrong input; `kinds` limits which ones are
    converted.

    Raises:
        UserError: the library has raised.
    """
    try:
        yield
    except UserError:
        raise
    except kinds as error:
        said = " ".join(str(error).split()) or "no message"
        said = said if len(said) <= 200 else f"{said[:197]}..."
        raise UserError(f"{what} ({type(error).__name__}: {said}): {advice}") from error
