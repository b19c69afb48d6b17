"""Trains runs that find experts anew in mid-run, kills one rank meanwhile, and starts again; of one thread.

    python -m tests.cli.killed_adjust OUT EVERY ARGUMENT...

For each layout: OUT/LAYOUT-undisturbed, and for each of its moments OUT/LAYOUT-MOMENT, killed there and started again.
One JSON line each: layout, moment, the ranks' statuses at the first start and at the second.
"""

import json
import sys
from pathlib import Path

from dist_moe.workflows.adjust import RunAdjuster
from dist_moe.workflows.reidentify import Reidentifier
from tests.cli.killed_revision import killing
from tools.soak.processes import prepare, start

RATE = ("--train.adjust.measure", "refusal_unsafe", "--train.adjust.above", "None", "--train.adjust.below", "0.9")
LAYOUTS = {
    "one": ("local", 1, (), ()),
    "two": ("deepspeed", 2, (), ("in-the-revision", "after-the-revision", "after-the-line")),
    "one-rate": ("local", 1, RATE, ()),
    "four-rate": ("fsdp", 4, (*RATE, "--parallel.ep_size", "2"), ("after-the-revision",)),
}
"""Engine, number of ranks, settings, and the moments at which it is killed."""
MOMENTS = {
    "in-the-revision": (Reidentifier, "__call__", "within", 0),
    "after-the-revision": (Reidentifier, "__call__", "after", 1),
    "after-the-line": (RunAdjuster, "_record", "after", 0),
}
"""The last number is that of the rank that is killed, at the first adjustment."""

if __name__ == "__main__":
    out, every, *words = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    prepare(Path(words[words.index("--config") + 1]), {engine for engine, *_ in LAYOUTS.values()})
    for layout, (engine, num_ranks, settings, moments) in LAYOUTS.items():
        for moment in ("undisturbed", *moments):
            name = f"{layout}-{moment}"
            given = [*words, *settings, "--run-dir", str(out / name)]
            first = None
            if moment in MOMENTS:
                undo = killing(*MOMENTS[moment], every - 1)
                first = start(engine, num_ranks, given, out / f"{name}-1.log").statuses()
                undo()
            second = start(engine, num_ranks, given, out / f"{name}-2.log").statuses()
            print(json.dumps([layout, moment, first, second]), flush=True)
