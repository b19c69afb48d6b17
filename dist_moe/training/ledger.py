"""Reads metrics.jsonl, and verifies that its lines prove which batches a run has trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.files import first_lines, write_bytes_atomic
from dist_moe.training.adjustments import Adjustment
from dist_moe.training.revisions import MaskRevisions
from dist_moe.training.rounds import Rounds
from dist_moe.training.schedule import Schedule
from dist_moe.training.state import Done, TrainState


def keep_lines(path: Path, number: int) -> None:
    """Cut a run's metrics, or its adjustments, to their first lines; what follows its checkpoint is done again."""
    lines = list(first_lines(path, number))
    if len(lines) < number:
        raise UserError(f"{path}: {len(lines)} lines, but the run's checkpoint is of {number}: restore it")
    write_bytes_atomic(path, b"".join(lines))


def check_ledger(
    metrics: Path,
    schedule: Schedule,
    masks: MaskRevisions,
    rounds: Rounds,
    first: TrainState,
    last: TrainState,
    adjustments: Sequence[Adjustment] = (),
) -> None:
    """Verify from metrics.jsonl that every batch was trained when it should be, under its mask, and what of it.

    Replays the schedule from the state `first` with what the lines and the run's `adjustments` say; it must reach
    `last`, the final state of the run.

    Raises:
        UserError: a line does not match the schedule, lines are missing or too many, or the numbers of tokens and rows
            do not add up to those of the run.
    """
    state, adjusted = first, {each.step: each for each in adjustments}
    for text in metrics.read_text(encoding="utf-8").splitlines():
        if state.step in adjusted:
            state = adjusted[state.step].applied(state)
        line, planned = json.loads(text), schedule.next(state)
        if planned is None:
            raise _proves_nothing(metrics)
        in_force = masks.at(planned.step)
        trains, weight = rounds.name_at(planned.step), state.batch_weights[planned.batch]
        expected = (planned.step, masks.first.batch_ids[planned.batch], in_force.number, trains, weight)
        if tuple(line.get(key) for key in ("step", "batch_id", "mask_revision", "trains", "weight")) != expected:
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
