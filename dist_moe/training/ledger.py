"""Reads metrics.jsonl, and verifies that its lines prove which batches a run has trained."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.files import write_bytes_atomic
from dist_moe.training.revisions import MaskRevisions
from dist_moe.training.rounds import Rounds
from dist_moe.training.schedule import Schedule
from dist_moe.training.state import Done, TrainState


def keep_lines(metrics: Path, num_steps: int) -> None:
    """Cut a run's metrics to its first steps; steps after its checkpoint are done again."""
    lines: list[bytes] = []
    if metrics.is_file():
        with metrics.open("rb") as stream:  # what a crash has left behind these lines need not be text
            lines = list(islice(stream, num_steps))
    if len(lines) < num_steps:
        raise UserError(f"{metrics}: {len(lines)} steps, but the run's checkpoint is of step {num_steps}: restore it")
    write_bytes_atomic(metrics, b"".join(lines))


def check_ledger(
    metrics: Path, schedule: Schedule, masks: MaskRevisions, rounds: Rounds, first: TrainState, last: TrainState
) -> None:
    """Verify from metrics.jsonl that every batch was trained when it should be, under its mask, and what of it.

    Replays the schedule from the state `first` with what the lines say; it must reach `last`, the final state of the
    run.

    Raises:
        UserError: a line does not match the schedule, lines are missing or too many, or the numbers of tokens and rows
            do
            not add up to those of the run.
    """
    state = first
    for text in metrics.read_text(encoding="utf-8").splitlines():
        line, planned = json.loads(text), schedule.next(state)
        if planned is None:
            raise _proves_nothing(metrics)
        in_force = masks.at(planned.step)
        trains = rounds.name_at(planned.step)
        expected = (planned.step, masks.first.batch_ids[planned.batch], in_force.number, trains)
        if tuple(line.get(key) for key in ("step", "batch_id", "mask_revision", "trains")) != expected:
            raise _proves_nothing(metrics)
        done = Done(*(line.get(key, 0) for key in ("num_tokens", "num_loss_tokens", "num_rows")))
        state = state.after(planned.step, planned.position, in_force, done)
    if state != last:
        raise _proves_nothing(metrics)


def _proves_nothing(metrics: Path) -> UserError:
    return UserError(
        f"{metrics} does not follow the run's order of batches, so it proves nothing: find out what else "
        "writes to it, and train again"
    )
