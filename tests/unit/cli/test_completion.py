"""What real shells offer when they have read the script: bash and zsh at a terminal, and fish by its own `complete`."""

import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import termios
import time

import pytest

from dist_moe.cli.completion import SHELLS, completion
from dist_moe.cli.main import command_tree

SECONDS = 60
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\x1b\][^\x07]*\x07|\r|\x08")
READY = "ready> "
CLEAR = "\x15"
"""Ctrl-U: the key that clears the line."""
STARTS = {"bash": ["bash", "--norc", "--noprofile", "-i"], "zsh": ["zsh", "-f", "-i"]}
SETTINGS = {
    "bash": "bind 'set show-all-if-ambiguous on' 'set page-completions off' 'set completion-query-items 0'",
    "zsh": "setopt auto_list; unsetopt list_ambiguous; LISTMAX=9999",
}

OFFERED = [
    ("dist-moe tr", ["train"]),
    ("dist-moe config ", ["init", "show", "diff"]),
    ("dist-moe store c", ["check", "copy"]),
    ("dist-moe train --train.l", ["--train.lr"]),
    ("dist-moe train --config a.yaml --engine f", ["fsdp"]),
    ("dist-moe train --train.mode ", ["route", "update"]),
    ("dist-moe export run --li", ["--link"]),
    ("dist-moe checkpoint ", ["show"]),
    ("dist-moe export some-r", []),  # the shell's names of files
    ("dist-moe config show --analysis.to", ["--analysis.tokens", "--analysis.top_k", "--analysis.top_p"]),
]
LINES = [line for line, _ in OFFERED]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory with the scripts, and one that a shell may complete."""
    path = tmp_path_factory.mktemp("completion")
    tree = command_tree()
    for shell in SHELLS:
        (path / shell).write_text(completion(shell, tree))
    (path / "some-run").mkdir()
    return path


def there(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


def in_bash(home, line):
    """All completions of the last word of a command line."""
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    code = f'source ./bash; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _dist_moe; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(["bash", "-c", code], cwd=home, capture_output=True, text=True, check=True, timeout=SECONDS)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(("line", "words"), OFFERED, ids=LINES)
def test_bash_offers(home, line, words):
    assert sorted(set(in_bash(home, line)) - {"-h", "--help"}) == sorted(words)


def test_what_is_not_read_is_not_offered(home):
    assert in_bash(home, "dist-moe analyze --train.l") == []
    assert in_bash(home, "dist-moe train --local") == []


class Terminal:
    """A shell at a terminal; what it shows is read until some words are there."""

    def __init__(self, shell, home):
        self.end, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 200, 0, 0))
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TERM": "xterm",
            "PS1": READY,
            "LC_ALL": "C.UTF-8",
        }
        streams = {"stdin": inner, "stdout": inner, "stderr": inner}
        self.process = subprocess.Popen(STARTS[shell], cwd=home, env=environment, start_new_session=True, **streams)
        os.close(inner)
        self.shown("", [READY], behind="")
        for command in (f"source ./{shell}", SETTINGS[shell]):
            self.done(command)

    def done(self, command):
        """Run it in the place of what is typed, and wait for its end."""
        self.shown(f"{CLEAR}{command}; echo d''one\n", [READY], behind="done")

    def shown(self, keys, words, behind):
        """Press these keys, and wait until all the words are there behind some text."""
        os.write(self.end, keys.encode())
        text, deadline = "", time.monotonic() + SECONDS
        while not all(word in (text.partition(behind)[2] if behind else text) for word in words):
            ready, _, _ = select.select([self.end], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{words} are not all in {text!r}"
            text = ESCAPES.sub("", text + os.read(self.end, 1 << 16).decode())

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.end)


@pytest.mark.parametrize("shell", STARTS)
def test_a_key_press_completes(home, shell):
    there(shell)
    terminal = Terminal(shell, home)
    try:
        for line, words in OFFERED:
            if len(words) > 1:
                shown = words
            else:  # what is missing is put behind what was typed
                shown = [(words or ["some-run"])[0].removeprefix(line.split(" ")[-1])]
            terminal.shown(f"{line}\t", shown, behind=line)
            terminal.done("true")
    finally:
        terminal.close()


@pytest.mark.parametrize(("line", "words"), OFFERED, ids=LINES)
def test_fish_offers(home, line, words):
    there("fish")
    code = f"source ./fish; complete -C '{line}'"
    environment = {**os.environ, "HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_DATA_HOME": str(home)}
    command = ["fish", "--no-config", "-c", code]
    done = subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, check=True, timeout=SECONDS
    )
    assert done.stderr == ""
    found = {each.partition("\t")[0] for each in done.stdout.splitlines()} - {"-h", "--help"}
    assert found == set(words or ["some-run/"])
