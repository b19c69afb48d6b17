"""Processes that are forks of one that has imported what they need, so that each takes the time of its work only.

`start_fork` calls a function in one, `run_forks` runs commands to Python's own end, the flush of its streams included.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.soak.__main__ import SINGLE_THREADED

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 200
PRELOADED = "tests.preloaded"


def server() -> Any:
    """The context of multiprocessing whose processes are forks of a server with all of our code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOADED])
    return context


class Fork(NamedTuple):
    """A function at work in a process of its own."""

    process: Any
    out: Path
    err: Path

    def status(self) -> int:
        """Wait for its end: its exit status, or minus the signal that ended it."""
        self.process.join(LIMIT_SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            raise AssertionError(f"no end after {LIMIT_SECONDS} s")
        return self.process.exitcode


def start_fork(root: Path, function: Callable[..., Any], *arguments: Any) -> Fork:
    """Call it in a process that prints to new files `out` and `err` in `root`; what it returns is the status."""
    out, err = root / "out", root / "err"
    process = server().Process(target=_printing, args=(out, err, function, arguments), daemon=True)
    process.start()
    return Fork(process, out, err)


def _printing(out: Path, err: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    for stream, place in enumerate((out, err), 1):
        os.dup2(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL), stream)
    sys.exit(function(*arguments))


IMPORTS = (
    "dist_moe.workflows.analyze",
    "dist_moe.workflows.train",
    "transformers.models.qwen3_moe.modeling_qwen3_moe",
)
FORKS = """
import gc, json, os, runpy, signal, sys

imports, starts = json.loads(sys.argv[1])
for name in imports:
    __import__(name)
assert len(os.listdir("/proc/self/task")) == 1, "a fork of a process with threads can hang"
gc.freeze()
for words, out, err in starts:
    child = os.fork()
    if child == 0:
        signal.alarm(200)
        if out is None:
            reader, writer = os.pipe()
            os.close(reader)
        else:
            writer = os.open(out, os.O_WRONLY)
        os.dup2(writer, 1)
        os.dup2(os.open(err, os.O_WRONLY | os.O_CREAT), 2)
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            runpy.run_path(sys.argv[0], run_name="__main__")
        raise AssertionError("the command has not ended the process")
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Ended(NamedTuple):
    status: int
    err: str


class Command(NamedTuple):
    words: Sequence[object]
    """What stands after `python`: a file, or -m and a module."""
    out: Path | None = None
    """The file that is stdout; None: a pipe that nobody reads."""


def run_forks(commands: Mapping[str, Command], root: Path) -> dict[str, Ended]:
    """Run commands one after the other; `root` is a directory for what they print to stderr."""
    errors = [root / f"{number}.err" for number in range(len(commands))]
    starts = [
        ([str(word) for word in words], None if out is None else str(out), str(err))
        for (words, out), err in zip(commands.values(), errors, strict=True)
    ]
    done = subprocess.run(
        [sys.executable, "-c", FORKS, json.dumps([IMPORTS, starts])],
        cwd=REPOSITORY,
        env=os.environ | SINGLE_THREADED | {"DS_ACCELERATOR": "cpu"},  # DeepSpeed warns of a device that it has to find
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    statuses = map(int, done.stdout.split())
    ended = [Ended(status, err.read_text()) for status, err in zip(statuses, errors, strict=True)]
    return dict(zip(commands, ended, strict=True))
