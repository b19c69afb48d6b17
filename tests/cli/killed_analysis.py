"""Kills an analysis again and again until one finishes; a program of its own, with one thread.

    python -m tests.cli.killed_analysis CONFIG SEED     without a seed it is not killed at all

Every file of an analysis appears by a rename. A run dies right before its n-th one, n drawn anew; the next goes on. One
line for each run: how many parts it has counted, how many steps it has written, and its status.
"""

import os
import random
import signal
import sys
from pathlib import Path
from types import ModuleType

from dist_moe.cli.main import main
from dist_moe.measure import parts
from dist_moe.store import plan
from dist_moe.workflows import analyze, count
from tests.unit.store.killed_writers import forked

MOST_RUNS = 60


def watched(module: ModuleType, name: str, log: list[str]) -> None:
    original = getattr(module, name)

    def function(*arguments: object, **settings: object) -> object:
        log.append(name)
        return original(*arguments, **settings)

    setattr(module, name, function)


def run(config: str, moment: int, answer: Path) -> None:
    log: list[str] = []
    watched(count, "count_rows", log)
    watched(analyze, "selected", log)
    seen = 0

    def tell() -> None:
        answer.write_text(f"{log.count('count_rows')} {log.count('selected')}")

    def look(event: str, _: object) -> None:
        nonlocal seen
        if event == "os.rename":
            seen += 1
            if seen == moment:
                tell()
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    assert main(["analyze", "--config", config]) == 0
    tell()


def until_done(config: str, chance: random.Random | None) -> None:
    answer = Path(config).with_suffix(".answer")
    for _ in range(MOST_RUNS):
        # a step of the store is some thirty files, of which none counts before the last: not all may die early
        moment = chance.randrange(*chance.choice([(2, 9), (30, 60)])) if chance else 0
        status = forked(run, config, moment, answer)
        print("run", answer.read_text(), status)
        if status == 0:
            return
    sys.exit(f"no end after {MOST_RUNS} runs")


if __name__ == "__main__":
    parts.ROWS_AT_ONCE = 16
    plan.batches_per_file = lambda num_batches: 1
    until_done(sys.argv[1], random.Random(int(sys.argv[2])) if len(sys.argv) > 2 else None)
