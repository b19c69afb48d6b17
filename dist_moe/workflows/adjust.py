"""`train.adjust`: evaluates every batch in mid-run, and trains weak ones more or gives them other masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from dist_moe.config.adjust import AdjustConfig
from dist_moe.config.schema import Config
from dist_moe.evaluation.batches import Limit
from dist_moe.files import writing
from dist_moe.model.model import MoEModel
from dist_moe.moe.internals import without_checkpointing
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.report.adjustments import adjustment_lines, effect_lines, rule_lines
from dist_moe.stats.measured import Estimate
from dist_moe.store import MaskStore
from dist_moe.training.adjustments import AdjustedBatch, Adjustment, append_adjustment, effects, read_adjustments
from dist_moe.training.engine import Engine
from dist_moe.training.state import RevisionInForce, TrainState
from dist_moe.workflows.adjust_rows import JudgedRows
from dist_moe.workflows.inputs import Inputs
from dist_moe.workflows.reidentify import Reidentifier, Revised, moved
from dist_moe.workflows.run_dir import RunDir

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Adjusting:
    """What is read before the first step; the same on all ranks."""

    rows: JudgedRows
    reidentifier: Reidentifier | None
    """None: masks stay."""


def read_adjusting(config: Config, inputs: Inputs, first: MaskStore, work: RunDir) -> Adjusting | None:
    """Read on each rank for itself; `first` are the run's first masks. None: `train.adjust` is off.

    Raises:
        UserError: something of it is missing, or does not fit.
    """
    adjust = config.train.adjust
    if adjust.every is None:
        return None
    reidentifier = Reidentifier.of(config, inputs, first, work) if adjust.reidentifies else None
    return Adjusting(JudgedRows.read(config, inputs), reidentifier)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunAdjuster:
    """Implements `dist_moe.training.trainer.Adjuster`."""

    settings: AdjustConfig
    model: MoEModel
    engine: Engine
    comm: Comm
    given: Adjusting
    work: RunDir

    @property
    def every(self) -> int:
        assert self.settings.every is not None
        return self.settings.every

    def tell_rule(self) -> None:
        """Before the first step."""
        settings = self.settings
        for line in rule_lines(settings.measure, settings.below, settings.above, self.given.rows.num_prompts):
            log.info(line)

    def __call__(
        self, state: TrainState, masks: MaskStore, *, num_added: int, is_last: bool
    ) -> tuple[Adjustment, MaskStore | None]:
        with without_checkpointing(self.model.module):
            values = self.given.rows.measure(self.model, self.comm)
            limit = Limit(self.settings.below, self.settings.above)
            weak = [] if is_last else [batch for batch, value in enumerate(values) if limit.is_weak(value)]
            revised = None
            if weak and self.given.reidentifier is not None:
                number = state.masks.number + 1
                revised = self.given.reidentifier(self.model, masks, number, weak, state.step, self.comm)
        self.engine.release()
        more = self._repeats(weak, values, limit, num_added)
        adjustment = Adjustment(
            step=state.step,
            measure=self.settings.measure,
            below=self.settings.below,
            above=self.settings.above,
            action=None if is_last else self.settings.action,
            revision=None if revised is None else RevisionInForce(state.masks.number + 1, revised.masks.digest),
            batches=tuple(
                self._batch(batch, value, limit, state, masks, revised, more) for batch, value in enumerate(values)
            ),
        )
        self._record(adjustment)
        return adjustment, None if revised is None else revised.masks

    def _batch(
        self,
        batch: int,
        value: Estimate | None,
        limit: Limit,
        state: TrainState,
        masks: MaskStore,
        revised: Revised | None,
        more: dict[int, int],
    ) -> AdjustedBatch:
        is_weak, weight = limit.is_weak(value), state.batch_weights[batch]
        is_changed = batch in more
        gained, lost = ([], []) if revised is None or not is_weak else moved(masks, revised.masks, batch)
        return AdjustedBatch(
            batch=batch,
            batch_id=masks.batch_ids[batch],
            category=masks.categories[batch],
            value=value,
            is_weak=is_weak,
            weight=self._grown(weight) if is_changed else weight,
            weight_before=weight,
            repeats=more.get(batch, 0),
            experts_in=gained,
            experts_out=lost,
            num_selected=None if revised is None else revised.num_selected.get(batch),
        )

    def _grown(self, weight: float) -> float:
        """A weak batch's weight."""
        return max(weight, min(weight * self.settings.factor, self.settings.maximum))

    def _repeats(
        self, weak: Sequence[int], values: Sequence[Estimate | None], limit: Limit, num_added: int
    ) -> dict[int, int]:
        """How many more steps each batch gets that is trained more; the worst come first while the budget lasts."""
        if not self.settings.reweights:
            return {}
        left, more = self.settings.budget - num_added, {}
        for batch in sorted(weak, key=lambda each: (-limit.badness(_known(values[each])), each)):
            more[batch] = min(self.settings.repeats, left)
            left -= more[batch]
        return more

    def _record(self, adjustment: Adjustment) -> None:
        path = self.work.adjustments
        with together(self.comm), writing(path):
            if self.comm.rank == 0:
                before = read_adjustments(path)
                append_adjustment(path, adjustment)
                for line in adjustment_lines(adjustment):
                    log.info(line)
                for line in effect_lines([*effects((*before[-1:], adjustment))]):
                    log.info(line)


def _known(value: Estimate | None) -> Estimate:
    assert value is not None
    return value
