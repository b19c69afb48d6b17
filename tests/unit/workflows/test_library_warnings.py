"""A library's repeated warning is one line with a count."""

import io
import logging
import warnings

import pytest

from dist_moe.workflows import library_warnings as module
from dist_moe.workflows.library_warnings import LibraryWarnings


@pytest.fixture
def library(monkeypatch):
    """A library with a logger that prints, and what it has printed."""
    logger, printed = logging.getLogger("some_library"), io.StringIO()
    handler = logging.StreamHandler(printed)
    logger.addHandler(handler)
    logger.propagate = False
    monkeypatch.setattr(module, "LIBRARIES", ("some_library",))
    yield logging.getLogger("some_library.part"), printed
    logger.removeHandler(handler)
    assert handler.filters == []


def warn(text, line):
    warnings.warn_explicit(text, FutureWarning, "library.py", line, module="library")


@pytest.mark.parametrize("is_first", [True, False])
def test_it_is_shown_once_by_the_first_rank_and_counted(library, is_first):
    logger, printed = library
    told, before = [], warnings.showwarning
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with LibraryWarnings(told.append, is_first=is_first):
            for line in range(5):
                warn("the old way", line)
                logger.warning("slow path for %s", "experts")
            warn("another", 9)
            logger.info("not asked for")
        assert [str(each.message) for each in shown] == ["the old way", "another"] * is_first
        assert printed.getvalue() == "some_library.part: slow path for experts\n".partition(": ")[2] * is_first
        assert told == [
            "FutureWarning: the old way",
            "some_library.part: slow path for experts",
            "FutureWarning: another",
            "4 times more: FutureWarning: the old way",
            "4 times more: some_library.part: slow path for experts",
        ]
        logger.warning("slow path for experts")
        warn("the old way", 1)
        assert len(shown) == 2 * is_first + 1
    assert printed.getvalue().count("slow path") == is_first + 1
    assert warnings.showwarning is before
