"""What mode `route` costs is told before the first step."""

from __future__ import annotations

import logging

import torch

from dist_moe.config.schema import TrainConfig
from dist_moe.parallel.comm import Comm
from dist_moe.report.route import price_lines
from dist_moe.training.price import route_price
from dist_moe.training.split import Rows
from dist_moe.training.step import route_plan
from dist_moe.workflows.train_given import Given

log = logging.getLogger(__name__)


def tell_route_cost(train: TrainConfig, given: Given, rows: Rows, comm: Comm) -> None:
    """Say it of the first batch. Called by all ranks together; a model that is sharded is to be released after."""
    scheduled = given.schedule.next(given.first)
    assert scheduled is not None
    plan = route_plan(train, torch.from_numpy(given.masks.first.masks[scheduled.batch]))
    assert plan is not None
    price = route_price(given.model, rows.local(rows.of(scheduled.batch)), plan, comm)
    for line in price_lines(train, scheduled.batch, price):
        log.info(line)
