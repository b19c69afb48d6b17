"""Kills writers of a store at random moments, and checks what they leave; a program of its own, with one thread.

    python -m tests.unit.store.killed_writers DIRECTORY

A writer dies at its n-th look at the file system (an audit event), n drawn with a fixed seed; the other writers of the
same store do not. A sane end is printed for each.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import dist_moe.files
from dist_moe.errors import UserError
from dist_moe.store import MaskStore, StoreWriter, write_store
from tests.unit.store.example import tiled_contents

CONTENTS = tiled_contents(50)  # 150 batches: three files of each array
ROWS = 64
EVENTS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.scandir"}
NUM_WRITERS = 2


def write(path: Path, writer: int) -> None:
    """The work of one of several processes: its steps, and then the seal, if all others are done."""
    store = StoreWriter(path, CONTENTS.plan)
    for batches in store.missing:
        if batches.start // ROWS % NUM_WRITERS == writer:
            store.write(batches, CONTENTS.plan.cut(CONTENTS.results, batches))
    if not store.missing:
        store.seal()


class Looks:
    """Counts this process' accesses to the file system, and kills it at one of them."""

    def __init__(self, moment: int = 0) -> None:
        self.seen, self.moment = 0, moment
        sys.addaudithook(self._look)

    def _look(self, event: str, _: object) -> None:
        if event in EVENTS:
            self.seen += 1
            if self.seen == self.moment:
                os.kill(os.getpid(), signal.SIGKILL)


def forked(function: Callable[..., None], *arguments: object) -> int:
    """Run in a child process; returns exit status, or minus the signal. A child that hangs for 20 s is a failure."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(*arguments)
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + 20
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            sys.exit(f"writer {child} hangs")
        time.sleep(0.002)


def killed_write(path: Path, writer: int, moment: int) -> None:
    Looks(moment)
    write(path, writer)


def counted_write(path: Path, writer: int, answer: Path) -> None:
    looks = Looks()
    write(path, writer)
    answer.write_text(str(looks.seen))


def visible(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files if ".writing" not in file.parts}


def state(path: Path) -> str:
    try:
        MaskStore.open(path).check()
    except UserError as error:
        for kind in ("is incomplete", "no mask store at", "is not a mask store"):
            if kind in str(error):
                return kind
        raise
    return "whole"


def main(root: Path) -> None:
    dist_moe.files.sync = lambda _: None  # a killed process loses nothing that the kernel has, and a disk is slow
    write_store(root / "undisturbed.zarr", CONTENTS.plan, CONTENTS.results)
    expected = visible(root / "undisturbed.zarr")
    chance = random.Random(0)
    assert forked(write, root / "counted.zarr", 0) == 0
    assert forked(counted_write, root / "counted.zarr", 1, root / "looks") == 0
    num_looks = int((root / "looks").read_text())
    assert forked(counted_write, root / "first.zarr", 0, root / "first-looks") == 0
    num_first_looks = int((root / "first-looks").read_text())
    for kill in range(20):
        path = root / f"{kill}.zarr"
        assert forked(write, path, 0) == 0
        # Half of the kills are about the end of the seal, which is short: zarr.json comes ten looks before the last.
        moment = chance.randrange(1, num_looks - 8) if kill % 2 else chance.randrange(num_looks - 13, num_looks + 1)
        status = forked(killed_write, path, 1, moment)
        left = state(path)
        assert left in ("is incomplete", "whole") if status else left == "whole", left
        # The first writer was killed in others; then nobody knows of the store.
        early = root / f"{kill}-early.zarr"
        assert forked(killed_write, early, 0, chance.randrange(1, num_first_looks)) == -signal.SIGKILL
        assert state(early) != "whole"
        for unfinished in (path, early):
            for writer in range(NUM_WRITERS if left != "whole" or unfinished == early else 0):
                assert forked(write, unfinished, writer) == 0
            if state(unfinished) != "whole":
                assert forked(write, unfinished, 0) == 0
            assert visible(unfinished) == expected
            shutil.rmtree(unfinished)
        print(kill, status, left)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
