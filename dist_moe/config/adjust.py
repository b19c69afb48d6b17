"""The section `train.adjust`, and what its settings must have in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Interval

from dist_moe.errors import UserError
from dist_moe.ranges import Count, NonNegativeInt, Positive, Trains

RATES = ("refusal_unsafe",)
"""Measures that are shares; the others are losses."""


@dataclass(kw_only=True, slots=True)
class AdjustConfig:
    every: Count | None = None
    """Evaluate every batch after every so many steps, and once after the last step, always without a mask. After each
    evaluation but the last, weak batches are trained more or get other masks, as `action` says. None: never."""
    measure: Literal["refusal_unsafe", "loss_unsafe", "loss_safe"] = "refusal_unsafe"
    """What batches are judged by. refusal_unsafe: the share of unsafe prompts whose greedy answer is a refusal, as the
    first of `evaluation.judges` sees it. loss_unsafe, loss_safe: the mean loss per token of the responses to unsafe or
    to safe prompts, in nats."""
    below: Annotated[float, Interval(gt=0, lt=1)] | None = None
    """For refusal_unsafe: a batch is weak if its share is below this beyond noise, that is if the upper end of the
    share's 95 % interval is. A batch of 8 unsafe prompts is weak below 0.8 only if at most 4 of them are refused."""
    above: Positive | None = None
    """For losses: a batch is weak if the lower end of its loss's 95 % interval is above this. There is no interval, and
    no batch is weak, with fewer than 6 different prompts."""
    action: Literal["reweight", "reidentify", "both"] = "reweight"
    """What is done with weak batches. reweight: they are trained with a larger weight (`factor`, `maximum`) and more
    often (`repeats`, `budget`). reidentify: their prompts are counted anew with the model as it is, and the rule of
    their masks selects their experts anew; the other batches keep their masks, and so does a batch for which the rule
    selects no expert. It needs `train.trains` with experts. both: both."""
    factor: Positive = 2.0
    """Reweight: multiply a weak batch's weight by this; 1: weights stay. AdamW divides a gradient by its size, so a
    weight changes little for an expert that only one batch trains: it decides between batches that share experts."""
    maximum: Positive = 8.0
    """Reweight: no weight grows beyond this."""
    repeats: NonNegativeInt = 0
    """Reweight: train each weak batch so many times more, before the order of batches goes on."""
    budget: NonNegativeInt = 0
    """The most steps that `repeats` may add to the whole run. Where it is not enough for all weak batches, those with
    the worst values come first. The learning-rate schedule is planned for a run that uses all of it."""
    data: tuple[Path, ...] = ()
    """Files of rows to evaluate in place of the batch's own; a batch is judged by the rows of its category. Do not use
    the rows that you report results on: this is training. Empty: each batch's training rows."""

    @property
    def label(self) -> str:
        """Of the rows that the measure is of: safe or unsafe."""
        return self.measure.rpartition("_")[2]

    @property
    def reweights(self) -> bool:
        return self.action != "reidentify"

    @property
    def reidentifies(self) -> bool:
        return self.action != "reweight"

    @property
    def facts(self) -> dict[str, Any]:
        """The settings as JSON values, without the paths of files; empty if batches are never evaluated."""
        return {} if self.every is None else {key: value for key, value in asdict(self).items() if key != "data"}


def check_adjust(adjust: AdjustConfig, revisions: tuple[str, ...], trains: Trains) -> None:
    """Raises `UserError`: settings that contradict each other, or that would do nothing."""
    if adjust.every is None:
        if adjust.below is not None or adjust.above is not None:
            raise UserError("train.adjust: a limit is set, but not train.adjust.every: set it to a number of steps")
        return
    needed, other = ("below", "above") if adjust.measure in RATES else ("above", "below")
    if getattr(adjust, needed) is None or getattr(adjust, other) is not None:
        wrong = "a rate is weak where it is low" if needed == "below" else "a loss is weak where it is high"
        raise UserError(
            f"train.adjust.measure is {adjust.measure}, and {wrong}: set train.adjust.{needed}, and not {other}"
        )
    if adjust.reidentifies and trains == "routers":
        raise UserError(
            f"train.adjust.action is {adjust.action}, which finds anew the experts that weak batches train, but "
            "train.trains is routers, which trains none: set train.adjust.action to reweight, or train.trains to "
            "experts_and_routers"
        )
    if adjust.reidentifies and revisions:
        raise UserError(
            f"train.adjust.action is {adjust.action}, which writes the later masks of the run, but train.revisions "
            "names some too: use one of the two"
        )
    if adjust.reweights and adjust.factor <= 1 and not adjust.repeats:
        raise UserError(
            f"train.adjust.action is {adjust.action}, but weak batches would get no larger weight and no more steps: "
            "set train.adjust.factor above 1, or train.adjust.repeats"
        )
    if not adjust.reweights and (adjust.repeats or adjust.budget):
        raise UserError(
            "train.adjust.action is reidentify, but train.adjust.repeats or budget is set, which only reweight reads: "
            "set action to both, or leave them out"
        )
    if bool(adjust.repeats) != bool(adjust.budget):
        raise UserError(
            f"train.adjust.repeats is {adjust.repeats} and train.adjust.budget {adjust.budget}: set both, how often a "
            "weak batch is repeated and the most steps that this may add to the run, or neither"
        )
