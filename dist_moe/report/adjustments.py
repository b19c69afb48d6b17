"""What `train.adjust` has found and done in mid-run, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from dist_moe.evaluation.batches import most_refused
from dist_moe.stats.measured import Estimate
from dist_moe.training.adjustments import AdjustedBatch, Adjustment, Effect

SHOWN = 20
"""Batches that are told of one by one."""
KEPT = "keeps its experts, as the rule selects none from its new counts"


def rule_lines(measure: str, below: float | None, above: float | None, num_prompts: Sequence[int]) -> Iterator[str]:
    """Before the first step: what it takes for a batch to be weak, with so many different prompts a batch."""
    limit = f"below {below:g}" if below is not None else f"above {above:g}"
    fewest, most = min(num_prompts), max(num_prompts)
    prompts = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    yield f"Batches are judged by {measure}, on {prompts} prompts each: weak is what is {limit} beyond noise"
    if below is not None:
        refused = most_refused(fewest, below)
        if refused is None:
            yield f"  WARNING: of {fewest} prompts none need be refused for noise to explain it: no such batch is weak"
        else:
            yield f"  Of {fewest} prompts that means: at most {refused} refused ({refused / fewest:.2f})"


def adjustment_lines(adjustment: Adjustment) -> Iterator[str]:
    """Of one evaluation: all batches in a line, the weak ones one by one."""
    values = [batch.value.value for batch in adjustment.batches if batch.value is not None]
    spread = f"{min(values):.2f} to {max(values):.2f}, median {median(values):.2f}" if values else "nothing to measure"
    weak = adjustment.weak
    yield (
        f"After step {adjustment.step}: {adjustment.measure} of {len(adjustment.batches)} batches {spread}; "
        f"{len(weak)} weak beyond noise"
    )
    for batch in weak[:SHOWN]:
        yield f"  batch {batch.batch} ({batch.category}): {in_words(batch.value)}{_done(batch, adjustment)}"
    if len(weak) > SHOWN:
        yield f"  and {len(weak) - SHOWN} more"


def effect_lines(effects: Sequence[Effect]) -> Iterator[str]:
    """What has become of batches that were weak at the evaluation before."""
    for effect in effects[:SHOWN]:
        values = f"{in_words(effect.before)} -> {in_words(effect.after)}"
        yield f"  batch {effect.batch} ({effect.category}): {values} after {cause(effect)}"


def cause(effect: Effect) -> str:
    """What was changed for a weak batch."""
    if effect.revision is not None:
        return f"revision {effect.revision}"
    return f"weight {effect.weight:g}" + (", with the experts that it had" if effect.kept_its_mask else "")


def in_words(value: Estimate | None) -> str:
    """A value with its interval."""
    if value is None:
        return "no value"
    ends = "" if value.low is None else f" ({value.low:.2f} to {value.high:.2f})"
    return f"{value.value:.2f}{ends}"


def _done(batch: AdjustedBatch, adjustment: Adjustment) -> str:
    done = []
    if batch.weight != batch.weight_before:
        done.append(f"weight {batch.weight_before:g} -> {batch.weight:g}")
    if batch.repeats:
        done.append(f"{batch.repeats} more steps")
    if batch.kept_its_mask:
        done.append(KEPT)
    elif adjustment.action in ("reidentify", "both"):
        done.append(f"{len(batch.experts_in)} experts in, {len(batch.experts_out)} out")
    return f": {', '.join(done)}" if done else ""
