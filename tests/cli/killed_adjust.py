"""Trains runs that find experts anew in mid-run, kills one rank meanwhile, and starts again; of one thread.

    python -m tests.cli.killed_adjust OUT EVERY LAYOUT,... ARGUMENT...

For each of the layouts: OUT/LAYOUT-undisturbed, and for each of its moments OUT/LAYOUT-MOMENT, killed there and started
again. One JSON line each: layout, moment, the ranks' statuses at the first start and at the second.
"""

import json
import sys
from pathlib import Path

from dist_moe.workflows.adjust import RunAdjuster
from dist_moe.workflows.reidentify import Reidentifier
from tests.cli.killed_revision import killing
from tools.soak.processes import prepare, start

RATE = ("--train.adjust.measure", "refusal_unsafe", "--train.adjust.above", "None", "--train.adjust.below", "0.9")
TURNS = ("--train.trains", "experts_and_routers", "--train.rounds", "experts:2", "routers:1")
ZERO_3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
LAYOUTS = {
    "one": ("local", 1, (), ()),
    "two": ("deepspeed", 2, (), ("in-the-revision", "after-the-revision", "after-the-line")),
    "one-rate": ("local", 1, RATE, ()),
    "four-rate": ("fsdp", 4, (*RATE, "--parallel.ep_size", "2"), ("after-the-revision",)),
    "one-turns": ("local", 1, (*RATE, *TURNS), ()),
    "zero-turns": ("deepspeed", 2, (*RATE, *TURNS, "--train.deepspeed_config", "zero-3.json"), ("after-the-revision",)),
}
"""Engine, number of ranks, settings, and the moments at which it is killed. zero-3.json is written into OUT."""
MOMENTS = {
    "in-the-revision": (Reidentifier, "__call__", "within", 0),
    "after-the-revision": (Reidentifier, "__call__", "after", 1),
    "after-the-line": (RunAdjuster, "_record", "after", 0),
}
"""The last number is that of the rank that is killed, at the first adjustment."""

if __name__ == "__main__":
    out, every, chosen, *words = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(","), *sys.argv[4:]
    prepare(Path(words[words.index("--config") + 1]), {engine for engine, *_ in LAYOUTS.values()})
    (out / "zero-3.json").write_text(json.dumps(ZERO_3))
    for layout in chosen:
        engine, num_ranks, settings, moments = LAYOUTS[layout]
        for moment in ("undisturbed", *moments):
            name = f"{layout}-{moment}"
            own = [str(out / word) if word == "zero-3.json" else word for word in settings]
            given = [*words, *own, "--run-dir", str(out / name)]
            first = None
            if moment in MOMENTS:
                undo = killing(*MOMENTS[moment], every - 1)
                first = start(engine, num_ranks, given, out / f"{name}-1.log").statuses()
                undo()
            second = start(engine, num_ranks, given, out / f"{name}-2.log").statuses()
            print(json.dumps([layout, moment, first, second]), flush=True)
