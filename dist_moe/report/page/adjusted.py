"""What was found of batches in mid-run, what was changed then, and what has become of them (`train.adjust`)."""

from __future__ import annotations

from collections.abc import Iterator

from dist_moe.report.adjustments import KEPT, cause
from dist_moe.report.page.blocks import Cell, Section, bullets, joined, paragraph, table
from dist_moe.report.page.contents import RunContents
from dist_moe.report.page.numbers import shown
from dist_moe.training.adjustments import AdjustedBatch, Adjustment, Effect, effects

MOST_LINES = 200


def adjusted(run: RunContents, key: str) -> Section | None:
    """None: nothing was looked at in mid-run."""
    if not run.adjustments:
        return None
    first = run.adjustments[0]
    limit = f"below {first.below:g}" if first.below is not None else f"above {first.above:g}"
    intro = (
        f"During training all batches were evaluated without a mask, by {first.measure}. A batch is weak if its whole "
        f"95 % interval is {limit}. What is looked at in mid-run steers the training: these values say nothing of "
        "other prompts."
    )
    parts = [paragraph(intro), bullets([*_each(run)])]
    if lines := [line for each in run.adjustments for line in _lines(each)][:MOST_LINES]:
        head = ["after step", "batch", "value", "weight", "more turns", "experts in", "experts out", "masks"]
        parts.append(table("Weak batches, and what was changed for them", head, lines))
    parts.append(bullets([_told(effect) for effect in [*effects(run.adjustments)][:MOST_LINES]]))
    return Section("adjusted", "Weak batches in mid-run", joined(parts))


def _each(run: RunContents) -> Iterator[str]:
    for each in run.adjustments:
        yield f"After step {each.step}: {len(each.weak)} of {len(each.batches)} batches were weak."


def _lines(adjustment: Adjustment) -> Iterator[list[Cell]]:
    masks = f"r{adjustment.revision.number}" if adjustment.revision is not None else "as before"
    for batch in adjustment.weak:
        yield [
            str(adjustment.step),
            f"{batch.batch} ({batch.category})",
            shown(_name(adjustment.measure), batch.value),
            _weight(batch),
            str(batch.repeats),
            str(len(batch.experts_in)),
            str(len(batch.experts_out)),
            KEPT if batch.kept_its_mask else masks,
        ]


def _weight(batch: AdjustedBatch) -> str:
    return f"{batch.weight_before:g}" + (f" → {batch.weight:g}" if batch.weight != batch.weight_before else "")


def _told(effect: Effect) -> str:
    """`Batch 7 (hexes): 41 % (12 to 74) → 78 % (...) after revision 2`."""
    before, after = (shown(_name(effect.measure), value) for value in (effect.before, effect.after))
    return (
        f"Batch {effect.batch} ({effect.category}): {before} after step {effect.step} → {after} after {cause(effect)}"
    )


def _name(measure: str) -> str:
    """As an evaluation calls it: rates of refusal are told in percent."""
    return measure.replace("refusal_", "refused ") if measure.startswith("refusal_") else measure
