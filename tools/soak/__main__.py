"""Kill training jobs at random moments, let each finish, and compare with undisturbed jobs bit for bit.

    python -m tools.soak [--kills 20] [--seed 0] [--jobs NAME ...] [--out DIRECTORY]

One process is killed by SIGKILL, or asked to stop by SIGTERM; of two ranks on FSDP and DeepSpeed, one rank or the
launcher is killed. Exit status: 0; 1 if a bit differs or a job came to its end before its last kill; 2 if something
hung. The run directories, and what every start has printed, stay in `--out`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.soak.compare import differing_bits
from tools.soak.kills import Job, kill_again_and_again, undisturbed
from tools.soak.processes import HungError, prepare

# From the process's beginning, as the imports start pools: OpenMP's, OpenBLAS's, and a thread of pyarrow's allocator.
SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
FORMS = {
    "one-killed": ("local", 1, "rank", signal.SIGKILL, ()),
    "one-stopped": ("local", 1, "rank", signal.SIGTERM, ()),
    "one-killed-asynchronous": ("local", 1, "rank", signal.SIGKILL, ("--checkpoint.asynchronous",)),
    "fsdp-rank": ("fsdp", 2, "rank", signal.SIGKILL, ()),
    "fsdp-launcher": ("fsdp", 2, "launcher", signal.SIGKILL, ()),
    "fsdp-asynchronous-rank": ("fsdp", 2, "rank", signal.SIGKILL, ("--checkpoint.asynchronous",)),
    "deepspeed-rank": ("deepspeed", 2, "rank", signal.SIGKILL, ()),
    "deepspeed-launcher": ("deepspeed", 2, "launcher", signal.SIGKILL, ()),
}


def main() -> int:
    """Run the jobs that were asked for, one after the other."""
    parser = argparse.ArgumentParser("tools.soak", description="kill training jobs at random, and compare every bit")
    parser.add_argument("--kills", type=int, default=20, help="of each job (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--jobs", nargs="+", choices=FORMS, default=list(FORMS), metavar="NAME", help=", ".join(FORMS))
    parser.add_argument("--out", type=Path, help="a new directory (default: one that is removed)")
    parser.add_argument("--config", type=Path, help="a run's configuration (default: a small model made on the spot)")
    parser.add_argument("--masks", type=Path, help="its mask store")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        return _soak(args, args.out or Path(temporary))


def _soak(args: argparse.Namespace, out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    if args.config is None:
        subprocess.run(
            [sys.executable, "-m", "tools.soak.inputs", out / "inputs"], check=True, stdout=subprocess.DEVNULL
        )
    config = args.config or out / "inputs" / "run.yaml"
    arguments = ["--config", str(config), *(["--train.masks", str(args.masks)] if args.masks else [])]
    prepare(config, {FORMS[name][0] for name in args.jobs})
    done, failed = set(), False
    for name in args.jobs:
        engine, num_ranks, victim, number, settings = FORMS[name]
        job = Job(name, engine, num_ranks, victim, number, settings, args.kills)
        expected = out / f"{engine}-undisturbed"
        if engine not in done:
            undisturbed(job, arguments, expected)
            done.add(engine)
        num_killed = kill_again_and_again(job, arguments, out / name, args.seed, _say)
        bits = differing_bits(out / name, expected)
        _say(f"{name}: kills {num_killed} of {job.kills}, differing bits {bits}")
        failed |= bits > 0 or num_killed < job.kills
    return int(failed)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    if not SINGLE_THREADED.items() <= os.environ.items():
        os.execve(
            sys.executable, [sys.executable, "-m", "tools.soak", *sys.argv[1:]], {**os.environ, **SINGLE_THREADED}
        )
    try:
        sys.exit(main())
    except HungError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(2)
