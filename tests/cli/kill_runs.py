"""Start a training run again and again, and end each start by a signal at a random moment; then let it finish.

    python kill_runs.py --seed 0 --kills 20 --signal SIGKILL --run-dir RUN_DIR -- dist-moe-arguments...

A start is a fork of this process, which has imported everything, so that a signal can come at any moment of the work
and not only of imports. A fork of a process with threads can hang, so there must be one thread only. Says of each start
how it ended. No wait is without a limit: what hangs prints its stacks and is killed, and the status is HUNG.
Exit status otherwise: that of the last start, which nobody disturbs.
"""

import argparse
import faulthandler
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# Before the imports: OpenMP's and OpenBLAS's pools, and the thread that pyarrow's allocator starts when it is loaded.
SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
os.environ.update(SINGLE_THREADED)

import dist_moe.workflows.train  # noqa: E402, F401 (every start needs it)
from dist_moe.cli.main import main  # noqa: E402

WAIT_LIMIT_S = 60
"""For one start to come to its signal, or to end: it takes about 0.5 s."""
TOTAL_LIMIT_S = 300
HUNG = 99
DUMP = signal.SIGUSR2


class HungError(Exception):
    """A wait has passed its limit."""


def num_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def start(arguments: list[str]) -> int:
    """The process id of a fork that runs the command."""
    assert num_threads() == 1, f"{num_threads()} threads: a fork may hang"
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = main(arguments)
        except BaseException:  # noqa: BLE001 - nothing may reach the code of the parent
            traceback.print_exc()
        os._exit(status)
    return child


def ended(child: int) -> bool:
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_until(condition: Callable[[], bool], child: int) -> None:
    """Until it holds or the child has ended. A wait that is too long ends the child, after its stacks were printed."""
    limit = time.monotonic() + WAIT_LIMIT_S
    while not (ended(child) or condition()):
        if time.monotonic() > limit:
            os.kill(child, DUMP)
            time.sleep(2)  # for the dump
            os.kill(child, signal.SIGKILL)
            raise HungError(f"start {child} was at work for {WAIT_LIMIT_S} s without an end: its stacks are above")
        time.sleep(0.002)


def end_of(child: int) -> int:
    wait_until(lambda: False, child)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def steps_more(metrics: Path, number: int) -> Callable[[], bool]:
    """Whether `number` steps were written down since the first call."""
    size, seen = None, 0

    def check() -> bool:
        nonlocal size, seen
        now = metrics.stat().st_size if metrics.exists() else 0
        seen += size is not None and now > size
        size = now
        return seen >= number

    return check


def kill_runs(arguments: list[str], run_dir: Path, number: signal.Signals, num_kills: int, seed: int) -> int:
    """Every other start is killed while it sets up, the others in one of their first steps. The last start's status."""
    moments, metrics = random.Random(seed), run_dir / "metrics.jsonl"
    set_up = 0.0
    for i in range(num_kills):
        began = time.monotonic()
        child = start(arguments)
        if i % 2 == 0:
            wait_until(steps_more(metrics, moments.randint(1, 3)), child)
            set_up = set_up or time.monotonic() - began  # by the first start, so that it fits this machine
            time.sleep(moments.uniform(0, 0.02))
        else:
            time.sleep(moments.uniform(0, set_up))
        os.kill(child, number)
        status = end_of(child)
        early = (run_dir / "experts").exists()
        print(f"a start ended with {status}, {'after all its steps' if early else 'by the signal'}", flush=True)
    return end_of(start(arguments))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--signal", type=signal.Signals.__getitem__, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("arguments", nargs="+")
    args = parser.parse_args()
    faulthandler.register(DUMP, all_threads=True)
    faulthandler.register(signal.SIGALRM, all_threads=True, chain=True)  # then the alarm ends this process
    signal.alarm(TOTAL_LIMIT_S)
    try:
        sys.exit(kill_runs(args.arguments, args.run_dir, args.signal, args.kills, args.seed))
    except HungError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(HUNG)
