"""What mode `route` costs: it trains the model in a state in which it is never used."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from dist_moe.config.schema import TrainConfig
from dist_moe.moe.route_mask import surviving_slots
from dist_moe.parallel.comm import Comm
from dist_moe.training.schedule import Schedule
from dist_moe.training.split import Rows
from dist_moe.training.state import TrainState
from dist_moe.training.step import batch_loss, route_plan
from dist_moe.workflows.train_given import Given

log = logging.getLogger(__name__)


def tell_route_cost(
    train: TrainConfig, given: Given, schedule: Schedule, state: TrainState, rows: Rows, comm: Comm
) -> None:
    """Say it before the first step. Called by all ranks together; a model that is sharded is to be released after."""
    store, model = given.masks.first, given.model
    masks = [torch.from_numpy(store.masks[batch.index]) for batch in store.batches]
    scheduled = schedule.next(state)
    assert scheduled is not None
    first = scheduled.batch
    micro_batches = rows.local(rows.of(first))
    unmasked = batch_loss(model, micro_batches, None, comm)
    masked = batch_loss(model, micro_batches, route_plan(train, masks[first]), comm)
    slots = slots_in_use(train, masks, model.shape.top_k)
    log.info(
        f"Mode route: {slots}; loss of batch {first} is {unmasked:.4f} without the mask and {masked:.4f} under it."
    )
    log.info("  Inference has no mask. `--train.mode update` trains the same experts and leaves the routing as it is.")


def slots_in_use(train: TrainConfig, masks: Sequence[torch.Tensor], top_k: int) -> str:
    """Which (token, expert) pairs routing may still use under the masks, bool [L, E] each, in words."""
    which = " of unsafe rows" if train.scope == "unsafe" else ""
    if train.fill == "shrink":
        share = sum(surviving_slots(mask, top_k) for mask in masks) / len(masks)
        return f"{100 * share:.1f} % of the routing slots{which} survive (mean over batches)"
    if train.fill == "natural":
        return f"of the experts that a token{which} chooses, only the batch's stay in use (fill natural)"
    return f"all routing slots{which} stay in use (fill {train.fill})"
