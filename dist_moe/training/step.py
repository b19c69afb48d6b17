"""One training step: forward and backward under the batch's mask, then an update of only the mask's experts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from dist_moe.config.objective import active_terms
from dist_moe.config.schema import TrainConfig
from dist_moe.data.tokens import IGNORED, TokenBatch
from dist_moe.model.model import MoEModel
from dist_moe.moe.compiled import CompiledParts
from dist_moe.moe.route_mask import RoutePlan, routable
from dist_moe.objective import Over, Rows
from dist_moe.parallel.comm import Comm
from dist_moe.training.audit import StepAudit
from dist_moe.training.engine import Engine
from dist_moe.training.monitor import MaskMonitor
from dist_moe.training.objective import Contrast, Numbers, Objective, TermResult
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.passes import Passes
from dist_moe.training.promise import Promises
from dist_moe.training.rounds import EXPERTS, Trained


@dataclass(frozen=True, slots=True)
class StepResult:
    """Numbers of the whole batch, over the rows of all ranks."""

    loss: float
    """The objective: the sum of weight * mean over its terms, under the batch's mask."""
    terms: dict[str, TermResult]
    """Each term by name."""
    grad_norm: float
    num_active: int
    num_stepped: int
    num_loss_tokens: int
    num_tokens: int
    mask_hash: str


class MaskedStep:
    """The step, on any engine. All ranks call it together with the same mask and their own rows."""

    def __init__(
        self,
        model: MoEModel,
        optimizer: SelectiveAdamW,
        engine: Engine,
        comm: Comm,
        settings: TrainConfig,
        promises: Promises,
    ) -> None:
        """`promises` gives by batch id what the monitor compares the step with."""
        self.model, self.optimizer, self.engine, self.comm = model, optimizer, engine, comm
        self.settings, self.promises = settings, promises
        self.objective = Objective(active_terms(settings.objective))
        self.monitor = MaskMonitor(model, optimizer, comm, settings, promises)
        self.passes = Passes(model, engine, self.monitor, self.objective)
        self.audit = StepAudit(model, optimizer, engine, comm)
        self.compiled = CompiledParts(model.module) if settings.compile else None

    def promise(self, promises: Promises) -> None:
        """Use other masks from the next step on; the optimizer is reconciled with their union."""
        self.promises = self.monitor.promises = promises

    def audited(
        self,
        batch_id: str,
        mask_LE: torch.Tensor,
        micro_batches: Sequence[TokenBatch],
        weight: float = 1.0,
        trained: Trained = EXPERTS,
    ) -> StepResult:
        """Do a step, and raise an `AssertionError` on all ranks if it has changed a bit outside the batch's mask, or of
        what it does not train."""
        before = self.audit.digests()
        result = self(batch_id, mask_LE, micro_batches, weight, trained)
        self.audit.compare(before, self.promises(batch_id).mask_LE, trained)
        return result

    def __call__(
        self,
        batch_id: str,
        mask_LE: torch.Tensor,
        micro_batches: Sequence[TokenBatch],
        weight: float = 1.0,
        trained: Trained = EXPERTS,
    ) -> StepResult:
        """Do one step.

        Args:
            batch_id: id of the batch.
            mask_LE: bool [L, E], on the CPU.
            micro_batches: this rank's rows; the same number of micro-batches on all ranks.
            weight: multiplies the loss that is trained, not the one that is reported; 1 changes no bit.
            trained: whether the mask's experts are trained, and whether dense weights are.

        Raises:
            AssertionError: on all ranks: the step is not as `promises` say; no weight has changed.
        """
        plan = route_plan(self.settings, mask_LE)
        moving_LE = mask_LE if trained.experts else torch.zeros_like(mask_LE)
        first_layer = _first_layer(moving_LE, trained)
        numbers = _count_tokens(micro_batches, self.comm)
        sums = torch.zeros(len(self.objective.terms), dtype=torch.float64, device=self.comm.device)
        with (
            self.model.batch(route=plan, first_layer=first_layer, dense=trained.dense),
            self.monitor.during(batch_id, trained),
            nullcontext() if self.compiled is None else self.compiled.in_force(),
        ):
            contrasts = self._contrasts(micro_batches, plan, numbers)
            self.optimizer.begin(moving_LE, dense=trained.dense)
            for i, batch in enumerate(micro_batches):
                tokens = self.passes.trained(batch.to(self.comm.device), plan, numbers)
                losses = self.objective.losses(tokens, numbers, contrasts)
                sums += torch.stack([each.detach().double().sum() for each in losses.values()])
                loss = self.objective.total(losses, numbers)
                if loss.requires_grad:  # a batch that trains nothing has no graph, on every rank alike
                    self.engine.backward(loss if weight == 1 else weight * loss)
                    self.optimizer.dense.collect()
                last = i == len(micro_batches) - 1
                if last:
                    seen_hash = self.monitor.check()
                self.engine.step(last=last)
        loss_value, terms = self.objective.results(self.comm.sum_(sums), numbers, contrasts)
        return StepResult(
            loss=loss_value,
            terms=terms,
            grad_norm=self.optimizer.last_norm,
            num_active=int(moving_LE.sum()),
            num_stepped=self.optimizer.num_stepped,
            num_loss_tokens=numbers["answers", "all"],
            num_tokens=numbers["tokens", "all"],
            mask_hash=seen_hash,
        )

    def _contrasts(
        self, micro_batches: Sequence[TokenBatch], plan: RoutePlan | None, numbers: Numbers
    ) -> dict[str, Contrast]:
        """The objective's contrasts in this batch, for which all its tokens must have been seen."""
        if not self.objective.contrasted:
            return {}
        passes = [self.objective.sums(self.passes.ahead(batch.to(self.comm.device), plan)) for batch in micro_batches]
        sums = {
            name: [
                self.comm.sum_(torch.stack(parts).sum(0))
                for parts in zip(*(each[name] for each in passes), strict=True)
            ]
            for name in passes[0]
        }
        return self.objective.contrasts(sums, numbers)


def _first_layer(moving_LE: torch.Tensor, trained: Trained) -> int | None:
    """The MoE layer from which autograd runs: that of the first trained expert; for dense weights the first of all."""
    layers = torch.nonzero(moving_LE.any(1)).flatten().tolist()
    return 0 if trained.dense else next(iter(layers), None)


def route_plan(settings: TrainConfig, mask_LE: torch.Tensor) -> RoutePlan | None:
    """How routing is restricted for a batch's mask; None in mode update."""
    if settings.mode == "update":
        return None
    return RoutePlan(routable(mask_LE), settings.fill, settings.route_bias, settings.scope)


def _count_tokens(micro_batches: Sequence[TokenBatch], comm: Comm) -> Numbers:
    """Numbers of tokens, and of pairs, in the whole batch, over all ranks."""
    overs: tuple[Over, ...] = ("answers", "tokens", "pairs")
    counts = torch.zeros(len(overs), 2, dtype=torch.int64)
    for batch in micro_batches:
        counted = batch.labels != IGNORED, batch.own, batch.is_rejected & batch.begins
        for row, counted_RS in enumerate(counted):
            counts[row] += torch.stack([counted_RS.sum(), (counted_RS & batch.is_unsafe).sum()])
    numbers: dict[tuple[Over, Rows], int] = {}
    for over, (num_all, num_unsafe) in zip(
        overs, comm.sum_(counts.to(comm.device, non_blocking=True)).tolist(), strict=True
    ):
        numbers |= {(over, "all"): num_all, (over, "safe"): num_all - num_unsafe, (over, "unsafe"): num_unsafe}
    return numbers
