"""The exceptions that are shown to a user as a single line, without a traceback, and our one warning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input: the message says what is wrong, where, what was expected, and what to do.

    The command line prints it as `dist-moe: error: ...` and ends with status 2. Anything else keeps its traceback:
    that is a bug.
    """


class LostRankError(RuntimeError):
    """Another process of the job has died, so this one cannot go on. One line, and status 1."""


class UntestedVersionWarning(UserWarning):
    """A library's version is outside the range that all tests passed with."""


def shown(value: object, width: int = 60) -> str:
    """A value as a message shows it: its repr; of a long one, or of a long text, the first `width` characters."""
    if isinstance(value, str) and len(value) > width:
        return repr(f"{value[: width - 3]}...")
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


@contextmanager
def refused_by_library(what: str, advice: str, kinds: tuple[type[Exception], ...] = (Exception,)) -> Iterator[None]:
    """While a library reads what a user gave: whatever it raises is one line, "what (what it says): advice".

    Only the library's call stands inside, no code of ours, so that a bug of ours keeps its traceback. Readers of
    configurations, templates and tables raise whatever their first wrong assumption leads to, so all exceptions count
    as a refusal unless `kinds` narrows them.

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
