"""The forward passes of a step: of the model that is trained, of the base, and one ahead, without gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from dist_moe.data.tokens import IGNORED, TokenBatch
from dist_moe.model.model import MoEModel
from dist_moe.moe.route_mask import RoutePlan
from dist_moe.training.engine import Engine
from dist_moe.training.loss import LabelledLogits, positions
from dist_moe.training.monitor import MaskMonitor
from dist_moe.training.objective import Numbers, Objective, Read, Tokens, in_rows


class Passes:
    """Inside `model.batch`. All ranks call them together, for the same micro-batch."""

    def __init__(self, model: MoEModel, engine: Engine, monitor: MaskMonitor, objective: Objective) -> None:
        assert objective.base_rows is None or model.originals is not None, "the objective needs the originals"
        self.model, self.engine, self.monitor, self.objective = model, engine, monitor, objective
        self._labelled = LabelledLogits(model.module)

    def trained(self, batch: TokenBatch, plan: RoutePlan | None, numbers: Numbers) -> Tokens:
        """What the objective asks for, with the graph of the trained model, under the watch of the monitor."""
        base = self._base(batch, numbers)
        next_pass(self.model, batch, plan)
        self.monitor.watch(batch)
        read = self._read(self.engine.forward, batch, batch.predicting, self.objective.reads_routers)
        return Tokens.of(batch, read, base)

    def ahead(self, batch: TokenBatch, plan: RoutePlan | None) -> Tokens:
        """What contrasts ask for, without a graph and unseen by the monitor: the model is as in `trained`."""
        next_pass(self.model, batch, plan)
        with torch.no_grad(), self.monitor.aside():
            read = self._read(self._logits, batch, batch.predicting, self.objective.reads_routers)
        self.engine.release()
        return Tokens.of(batch, read, None)

    def _base(self, batch: TokenBatch, numbers: Numbers) -> Read | None:
        """What the base model computes for the rows that the objective needs it for, without a mask."""
        rows = self.objective.base_rows
        if rows is None or not self.objective.needs_base(numbers):  # on all ranks alike: a pass takes all that share
            return None
        assert self.model.originals is not None
        chosen_RS = in_rows(batch.is_unsafe, rows)
        at_n = positions(batch.all_labels.masked_fill(~chosen_RS, IGNORED))
        with (
            torch.no_grad(),
            self.monitor.aside(),
            self.model.batch(batch.live & chosen_RS),
            self.model.originals.in_force(),
        ):
            read = self._read(self._logits, batch, at_n, self.objective.reads_base_routers)
        self.engine.release()
        return read

    def _read(self, forward: Callable[..., torch.Tensor], batch: TokenBatch, at_n: torch.Tensor, routers: bool) -> Read:
        router_logits: Sequence[torch.Tensor] = ()
        with self._labelled.at_positions(at_n):
            if routers:
                with self.model.route_mask.reading() as router_logits:
                    logits = forward(**batch.inputs)
            else:
                logits = forward(**batch.inputs)
        return Read(self._labelled.rows(logits, len(at_n)), router_logits)

    def _logits(self, **inputs: Any) -> torch.Tensor:
        logits: torch.Tensor = self.model.module(**inputs).logits
        return logits


def next_pass(model: MoEModel, batch: TokenBatch, plan: RoutePlan | None) -> None:
    """Before a micro-batch's forward pass; stays until its backward pass, which may recompute the forward, is done."""
    masked_RS = batch.is_unsafe if plan is not None and plan.scope == "unsafe" else None
    model.next_pass(batch.live, masked_RS, num_live=batch.num_live)
