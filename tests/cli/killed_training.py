"""Trains over an earlier run, killed before its n-th rename or on a disk that is full; run as a program of one thread.

    python -m tests.cli.killed_training RUN_DIR WORK ARGUMENT...

For each n, on a copy of RUN_DIR in WORK/n: one start that is killed, a look at what is there, the same start again.
Then likewise with limits on the size of a file. One JSON line each: name, status of the first start, whether every old
result was there unchanged, whether a mark was that they are being replaced, status of the second start.
"""

import json
import os
import resource
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from dist_moe.cli.main import main
from dist_moe.trackers.rank_state import LOGS
from dist_moe.workflows.results import RESULTS
from tools.soak.processes import prepare

MOST_RENAMES = 60
LIMITS = (100, 1500, 4000, 20000)
"""Bytes: less than the configuration, a checkpoint's index, the metrics, the experts."""


def train(arguments: list[str], moment: int, limit: int | None) -> None:
    seen = 0

    def look(event: str, names: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "os.rename" and LOGS not in Path(os.fsdecode(names[1])).parts:  # a log is no result
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    os._exit(main(["train", *arguments]))


def forked(*arguments: object) -> int:
    """The exit status of `train`, or minus the signal that ended it. A hang is ended by an alarm."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            train(*arguments)
        except BaseException:  # noqa: BLE001 - nothing may reach the code of the parent
            traceback.print_exc()
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def results(run: Path) -> dict[str, bytes]:
    places = [run / name for name in RESULTS["train"]]
    files = [file for place in places for file in (place.rglob("*") if place.is_dir() else [place]) if file.is_file()]
    return {str(file.relative_to(run)): file.read_bytes() for file in files}


def tried(old: Path, work: Path, name: str, arguments: list[str], moment: int = 0, limit: int | None = None) -> int:
    run = work / name
    shutil.copytree(old, run)
    mine = [*arguments, "--run-dir", str(run)]
    first = forked(mine, moment, limit)
    same, marked = results(run) == results(old), bool(list(run.glob(".publish*")))
    second = forked(mine, 0, None) if first else 0
    print(json.dumps([name, first, same, marked, second]), flush=True)
    return first


if __name__ == "__main__":
    earlier, out, *words = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
    prepare(Path(words[words.index("--config") + 1]), set())
    for n in range(1, MOST_RENAMES):
        if tried(earlier, out, str(n), words, moment=n) == 0:
            break
    for size in LIMITS:
        tried(earlier, out, f"limit-{size}", words, limit=size)
