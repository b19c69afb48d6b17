"""Start a training run again and again, and end each start by a signal at a random moment; then let it finish.

    python kill_runs.py SEED NUM_KILLS SIGNAL RUN_DIR dist-moe-arguments...

A start is a fork of this process, which has imported everything, so that a signal can come at any moment of the work
and not only of imports. Says of each start how it ended. Exit status: that of the last start, which nobody disturbs.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import dist_moe.workflows.train  # noqa: F401 (every start needs it)
from dist_moe.cli.main import main

LONGEST = 0.6
"""Seconds until the signal of every other start, at most: about what setting up takes. The others get it in a step."""


def start(arguments: list[str]) -> int:
    pid = os.fork()
    if pid == 0:
        os._exit(main(arguments))
    return pid


def end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for_steps(child: int, metrics: Path, number: int) -> None:
    """Until `number` steps were written down, or the child has ended."""
    size, seen = None, 0
    while seen < number and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        now = metrics.stat().st_size if metrics.exists() else 0
        seen += size is not None and now > size
        size = now
        time.sleep(0.002)


if __name__ == "__main__":
    seed, num_kills, name, run_dir, *arguments = sys.argv[1:]
    moments, number = random.Random(int(seed)), signal.Signals[name]
    for i in range(int(num_kills)):
        child = start(arguments)
        if i % 2:
            wait_for_steps(child, Path(run_dir) / "metrics.jsonl", moments.randint(1, 5))
        time.sleep(moments.uniform(0, 0.03 if i % 2 else LONGEST))
        os.kill(child, number)
        status = end_of(child)
        early = (Path(run_dir) / "experts").exists()
        print(f"a start ended with {status}, {'after all its steps' if early else 'by the signal'}", flush=True)
    sys.exit(end_of(start(arguments)))
