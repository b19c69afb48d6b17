"""The training loop: step after step, until the schedule ends or the run is asked to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch

from dist_moe.store.read import MaskStore
from dist_moe.trackers.tracker import Place, Tracker
from dist_moe.training.adjustments import Adjustment
from dist_moe.training.feed import BatchFeed
from dist_moe.training.promise import stored_promises
from dist_moe.training.revisions import MaskRevisions
from dist_moe.training.rounds import Rounds
from dist_moe.training.saving import CheckpointSaver
from dist_moe.training.schedule import Schedule, Scheduled
from dist_moe.training.state import Done, RevisionInForce, TrainState
from dist_moe.training.step import MaskedStep
from dist_moe.training.stop import StopRequest

log = logging.getLogger(__name__)


class Adjuster(Protocol):
    """The interface of what evaluates the batches in mid-run, and adjusts their training. It changes no weight."""

    @property
    def every(self) -> int:
        """After how many steps it is due."""

    def __call__(
        self, state: TrainState, masks: MaskStore, *, num_added: int, is_last: bool
    ) -> tuple[Adjustment, MaskStore | None]:
        """Called by all ranks together; what it does follows from the model's weights and its arguments alone.

        Args:
            state: the run's.
            masks: those of the next step.
            num_added: steps that earlier adjustments have added to the run.
            is_last: after the last step, where nothing is changed.

        Returns:
            What is to change, and masks, if they are to change too.
        """


@dataclass(kw_only=True)
class Trainer:
    """A run from its first step, or from a checkpoint, to its end. `run` is called by all ranks together."""

    state: TrainState
    """Present state; a new value after each step."""
    schedule: Schedule
    step: MaskedStep
    """Its optimizer and promises must be those of the masks in `state`."""
    masks: MaskRevisions
    rounds: Rounds
    """What each step trains."""
    feed: BatchFeed
    trackers: Sequence[Tracker]
    """They get the record of each step, in this order."""
    place: Place
    saver: CheckpointSaver
    checkpoint_every: int
    """Save a checkpoint every so many steps; 0: only when the run is stopped."""
    stop: StopRequest
    adjuster: Adjuster | None = None
    watch: AbstractContextManager[object] = field(default_factory=nullcontext)
    """Entered around each step."""

    def run(self) -> bool:
        """Do the remaining steps. Returns True at the end of the schedule, False if the run was asked to stop and is
        saved.

        Raises:
            UserError: on all ranks: something cannot be written. The run can be resumed from its last checkpoint.
        """
        stopping = False
        with self.stop:
            while not stopping and self.schedule.next(self.state) is not None:
                self._adjust()
                scheduled = self.schedule.next(self.state)
                assert scheduled is not None
                self._take(scheduled)
                stopping = self._save_or_stop()
            self.saver.finish()
            if not stopping:
                self._adjust(is_last=True)
            self.stop.done(stopped=stopping)
        if stopping:
            done = f"step {self.state.step} of {self.schedule.total(self.state)}"
            log.info(f"Stopped after {done}, as requested, with a checkpoint: run the same command again to resume")
        return not stopping

    def _adjust(self, *, is_last: bool = False) -> None:
        """Between two steps, or after the last: evaluate and adjust, if it is due.

        A checkpoint of the step before knows nothing of it: a run that resumes there does it again.
        """
        step = self.state.step
        if self.adjuster is None or step == 0 or not (is_last or step % self.adjuster.every == 0):
            return
        masks = self.masks.stores[self.masks.at(step + 1).number]
        num_added = self.schedule.added(self.state)
        adjustment, revision = self.adjuster(self.state, masks, num_added=num_added, is_last=is_last)
        self.state = adjustment.applied(self.state)
        if revision is not None:
            self.masks = self.masks.and_then(step, revision)

    def _take(self, scheduled: Scheduled) -> None:
        started = time.perf_counter()
        in_force = self._revised(scheduled.step)
        store = self.masks.stores[in_force.number]
        batch, lr = store.batches[scheduled.batch], self.step.optimizer.param_groups[0]["lr"]
        is_audited = self._is_audited(scheduled.step)
        take = self.step.audited if is_audited else self.step
        ready = self.feed.take(store, scheduled.batch)
        self._begin_next(scheduled, in_force)
        mask_LE, local, weight = ready.mask_LE, ready.micro_batches, self.state.batch_weights[scheduled.batch]
        with self.watch:
            result = take(batch.id, mask_LE, local, weight, self.rounds.at(scheduled.step))
        seconds = time.perf_counter() - started
        done = Done(result.num_tokens, result.num_loss_tokens, ready.num_rows)
        self.state = self.state.after(scheduled.step, scheduled.position, in_force, done)
        self._record(
            {
                "step": scheduled.step,
                "epoch": scheduled.epoch,
                "batch": scheduled.batch,
                "batch_id": batch.id,
                "category": batch.category,
                "mode": self.step.settings.mode,
                "trains": self.rounds.name_at(scheduled.step),
                "mask_revision": in_force.number,
                "weight": weight,
                "num_rows": ready.num_rows,
                **asdict(result),
                "is_empty": not bool(mask_LE.any()),
                "lr": lr,
                "audited": is_audited,
                "seconds": round(seconds, 4),
                "tokens_per_second": round(result.num_tokens / seconds, 1),
            },
            num_own_tokens=sum(int(micro_batch.own.sum()) for micro_batch in local),
        )

    def _begin_next(self, scheduled: Scheduled, in_force: RevisionInForce) -> None:
        """Let the batch after this one be made ready; an adjustment between both may choose another."""
        following = self.schedule.next(self.state.after(scheduled.step, scheduled.position, in_force, Done()))
        if following is not None:
            self.feed.begin(self.masks.stores[self.masks.at(following.step).number], following.batch)

    def _revised(self, step: int) -> RevisionInForce:
        """The masks of a step. If they differ from those of the last step, update optimizer and promises first."""
        in_force = self.masks.at(step)
        if in_force != self.state.masks:
            store = self.masks.stores[in_force.number]
            union_LE = torch.from_numpy(self.rounds.union(store.union()))
            if self.step.model.originals is not None:
                self.step.model.keep_originals(union_LE)
            self.step.optimizer.reconcile(union_LE)
            self.step.promise(stored_promises(store))
        return in_force

    def _is_audited(self, step: int) -> bool:
        audit = self.step.settings.audit
        return audit > 0 and (step % audit == 0 or step in (1, self.schedule.total(self.state)))

    def _record(self, line: dict[str, Any], num_own_tokens: int) -> None:
        place = replace(self.place, num_steps=self.schedule.total(self.state), num_own_tokens=num_own_tokens)
        for tracker in self.trackers:
            with self.stop.failing_together():
                tracker.record(line, place)

    def _save_or_stop(self) -> bool:
        """After a step: save if it is time. Returns whether the run was asked to stop before its last step, and is
        saved."""
        asked, written = self.stop.agreed(self.saver.written)
        stopping = asked and self.schedule.next(self.state) is not None
        if written:
            self.saver.finish()
        every = self.checkpoint_every
        if stopping or (every and self.state.step % every == 0):
            self.saver.save(self.state)
        return stopping
