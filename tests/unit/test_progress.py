"""How far work has come: a bar on a terminal, plain lines in a log, nothing where nobody listens."""

import io
import logging
import sys

import pytest

from dist_moe import progress as module
from dist_moe.cli.console import console
from dist_moe.progress import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """The time, which a test sets."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_in_a_log_it_is_a_line_now_and_then(clock, capsys):
    with console(), progress("Routing", 10, "parts") as advance:
        for clock[0], more in ((110.0, 1), (131.0, 2), (140.0, 1), (170.0, 3)):
            advance(more)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "Routing: 3 of 10 parts, 31 s, about 72 s left",
        "Routing: 7 of 10 parts, 70 s, about 30 s left",
    ]
    assert printed.err == ""


def test_on_a_terminal_it_is_a_bar(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with console(), progress("Scoring", 4, "rows") as advance:
        advance(3)
        logging.getLogger("dist_moe.any").info("a line beside it")
    assert "Scoring" in terminal.getvalue()
    assert "3/4" in terminal.getvalue()
    assert "a line beside it" in terminal.getvalue() + capsys.readouterr().out


@pytest.mark.parametrize("quiet", [True, False])
def test_where_nobody_listens_it_is_nothing(clock, capsys, caplog, quiet):
    """`quiet`, or a library whose information nobody has asked for."""
    terminal = sys.stderr
    if quiet:
        caplog.set_level("INFO", "dist_moe")
    with progress("Routing", 10, "parts", quiet=quiet) as advance:
        clock[0] += 1000
        advance(5)
    assert caplog.messages == []
    assert sys.stderr is terminal
    assert capsys.readouterr() == ("", "")
