"""Trains runs whose masks change, kills one rank at the change, and resumes; a program of its own, with one thread.

    python -m tests.cli.killed_revision OUT CHANGE ARGUMENT...

For each layout: OUT/LAYOUT-undisturbed, and for each moment OUT/LAYOUT-MOMENT, killed there and started again. One JSON
line each: layout, moment, the ranks' statuses at the first start and at the second.
"""

import json
import os
import signal
import sys
from pathlib import Path

from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.saving import CheckpointSaver
from dist_moe.training.step import MaskedStep
from dist_moe.training.trainer import Trainer
from tools.soak.processes import prepare, start

LAYOUTS = {"one": ("local", 1), "two": ("deepspeed", 2), "four": ("fsdp", 4)}
"""Engine and number of ranks; the last rank is killed."""
MOMENTS = {
    "before-reconcile": (SelectiveAdamW, "reconcile", "before"),
    "after-reconcile": (SelectiveAdamW, "reconcile", "after"),
    "after-promise": (MaskedStep, "promise", "after"),
    "before-the-line": (Trainer, "_record", "before"),
    "after-the-line": (Trainer, "_record", "after"),
    "in-the-checkpoint": (CheckpointSaver, "save", "within"),
    "after-the-checkpoint": (CheckpointSaver, "save", "after"),
}
"""Number of the first step under the new masks."""


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_a_rename(event, _):
    if event == "os.rename":
        die()


def is_reached(arguments, change):
    """Whether a call belongs to the first step after the change."""
    what = arguments[1]
    if isinstance(what, dict):
        return what["step"] == change + 1
    return getattr(what, "step", change + 1) == change + 1  # a state; anything else is there at the change only


def killing(cls, name, when, victim, change):
    """Replace a method in this process, and so in its forks; returns a function that restores it."""
    method = getattr(cls, name)

    def replaced(*arguments, **named):
        mine = int(os.environ.get("RANK", "0")) == victim and is_reached(arguments, change)
        if mine and when == "before":
            die()
        if mine and when == "within":
            sys.addaudithook(die_at_a_rename)
        result = method(*arguments, **named)
        if mine:
            die()
        return result

    setattr(cls, name, replaced)
    return lambda: setattr(cls, name, method)


if __name__ == "__main__":
    out, change, *words = Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
    prepare(Path(words[words.index("--config") + 1]), {engine for engine, _ in LAYOUTS.values()})
    for layout, (engine, num_ranks) in LAYOUTS.items():
        for moment in ("undisturbed", *MOMENTS):
            name = f"{layout}-{moment}"
            given = [*words, "--run-dir", str(out / name)]
            first = None
            if moment in MOMENTS:
                undo = killing(*MOMENTS[moment], num_ranks - 1, change)
                first = start(engine, num_ranks, given, out / f"{name}-1.log").statuses()
                undo()
            second = start(engine, num_ranks, given, out / f"{name}-2.log").statuses()
            print(json.dumps([layout, moment, first, second]), flush=True)
