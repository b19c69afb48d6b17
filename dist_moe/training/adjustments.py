"""The ledger of adjustments (`train.adjust`): what was measured of each batch in mid-run, and what was changed then.

A line of adjustments.jsonl is one `Adjustment`. The schedule's part of it, other weights and more turns, is replayed by
the check of metrics.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict, NonNegativeInt

from dist_moe.artefacts import EXACT, checked_lines
from dist_moe.errors import UserError
from dist_moe.files import append_line, first_lines
from dist_moe.stats.measured import Estimate
from dist_moe.training.state import RevisionInForce, TrainState, Weight

ADJUSTMENTS = "adjustments.jsonl"
ADVICE = "restore it, or train again"
Action = Literal["reweight", "reidentify", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdjustedBatch:
    """What one evaluation says of a batch, and what follows."""

    batch: NonNegativeInt
    batch_id: str
    category: str
    value: Estimate | None
    """Of the measure, without a mask, with its 95 % interval. None: nothing could be measured."""
    is_weak: bool
    """Whether the whole interval is on the wrong side of the limit."""
    weight: Weight
    """By which its loss is multiplied from now on."""
    weight_before: Weight
    repeats: NonNegativeInt = 0
    """How many times more it is trained before the order of batches goes on."""
    experts_in: list[tuple[NonNegativeInt, NonNegativeInt]]
    """(layer, expert) that its mask has since then."""
    experts_out: list[tuple[NonNegativeInt, NonNegativeInt]]
    """Those that it has no longer."""
    num_selected: NonNegativeInt | None = None
    """How many experts the rule selected from its new counts; of 0 it keeps its mask. None: it was not counted anew."""

    @property
    def kept_its_mask(self) -> bool:
        """Whether its experts were looked for anew, and the rule selected none."""
        return self.num_selected == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """An evaluation of all batches between two steps, or after the last one, and what follows."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    step: NonNegativeInt
    """Number of finished steps."""
    measure: str
    below: float | None
    """A batch is weak if its value is below this. None: `above` is set."""
    above: float | None
    action: Action | None
    """None: the evaluation after the last step, which changes nothing."""
    revision: RevisionInForce | None
    """The masks that were written, in force from the next step on. None: the masks stay."""
    batches: tuple[AdjustedBatch, ...]

    @property
    def weak(self) -> list[AdjustedBatch]:
        return [batch for batch in self.batches if batch.is_weak]

    def applied(self, state: TrainState) -> TrainState:
        """The state of the run after it."""
        more = [batch.batch for batch in self.batches for _ in range(batch.repeats)]
        return state.adjusted([batch.weight for batch in self.batches], more)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """A weak batch at one evaluation and at the next: "batch 7: 0.41 -> 0.78 after revision 2"."""

    batch: int
    batch_id: str
    category: str
    measure: str
    step: int
    """After which it was weak, and the adjustment was made."""
    revision: int | None
    """Number of the masks that were written then. None: the batch's mask stayed."""
    kept_its_mask: bool
    """Whether its experts were looked for anew, and the rule selected none."""
    weight: float
    repeats: int
    before: Estimate
    after_step: int
    """Of the next evaluation."""
    after: Estimate


def effects(adjustments: Sequence[Adjustment]) -> Iterator[Effect]:
    """Each weak batch at its evaluation and at the next one, if there is one and both have a value."""
    for one, following in pairwise(adjustments):
        for batch, later in zip(one.batches, following.batches, strict=True):
            if batch.is_weak and batch.value is not None and later.value is not None:
                yield Effect(
                    batch=batch.batch,
                    batch_id=batch.batch_id,
                    category=batch.category,
                    measure=one.measure,
                    step=one.step,
                    revision=None if one.revision is None or batch.kept_its_mask else one.revision.number,
                    kept_its_mask=batch.kept_its_mask,
                    weight=batch.weight,
                    repeats=batch.repeats,
                    before=batch.value,
                    after_step=following.step,
                    after=later.value,
                )


def append_adjustment(path: Path, adjustment: Adjustment) -> None:
    """Add a line to the ledger."""
    append_line(path, json.dumps(asdict(adjustment), allow_nan=False))


def read_adjustments(path: Path, number: int | None = None) -> tuple[Adjustment, ...]:
    """The first lines of a ledger, in order; `number` None: all. A run without adjustments has no such file.

    Raises:
        UserError: there are fewer, or names the first line that is something else.
    """
    lines = list(first_lines(path, number))
    if number is not None and len(lines) < number:
        raise UserError(f"{path}: {len(lines)} lines, expected {number}: {ADVICE}")
    return tuple(checked_lines(Adjustment, (line.decode(errors="replace") for line in lines), path, ADVICE))
