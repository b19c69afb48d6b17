"""Every kind of router under ZeRO-3: each mode, fill and scope is one process's, and the monitor's, on two ranks.

ZeRO-3 puts its own function in the place of `F.linear`, so a mask may miss what a router computes; and it gathers a
module's weights when that module runs, so a module that reads another's may find nothing there.
"""

from typing import get_args

import pytest
import torch

from dist_moe.config.schema import TrainConfig
from dist_moe.conformance.sizes import build
from dist_moe.data.tokens import Encoded
from dist_moe.engines.deepspeed import DeepSpeedEngine
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import adopt
from dist_moe.moe.route_mask import Fill
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import Placement
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.split import Split
from dist_moe.training.step import MaskedStep
from tests.ranks.harness import run_ranks

CPU = SoloComm(torch.device("cpu"))
ZERO_3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}
KINDS = ("deepseek_v3", "gpt_oss", "granitemoehybrid", "jetmoe", "longcat_flash", "olmoe", "zaya")
"""Groups and a correction bias, a bias, a mixer that reads a convolution's weight, two adapted ones, null experts."""
ROUTES = [{"mode": "route", "fill": fill, "scope": "all"} for fill in get_args(Fill)]
ROUTES.append({"mode": "route", "fill": "natural", "scope": "unsafe"})
ROWS = 4


def rows(vocabulary=120):
    generator = torch.Generator().manual_seed(2)
    ids = [torch.randint(3, vocabulary, (8 + i,), generator=generator).tolist() for i in range(ROWS)]
    return [Encoded(tuple(each[:4]), tuple(each[4:]), unsafe=i % 2 == 1) for i, each in enumerate(ids)]


def outcomes(comm, family):
    """Loss and gradient norm of one step in each mode; the monitor raises where a mask is not in force."""
    mesh = Mesh.of(comm, None)
    module = build(family)
    shape = adopt(build(family), CPU).shape
    model = adopt(module, mesh.ep, Placement.contiguous(shape.num_layers, shape.num_experts, mesh.ep.size))
    scores = torch.rand(shape.num_layers, shape.num_experts, generator=torch.Generator().manual_seed(4))
    mask = scores.argsort(1) < 3
    optimizer = SelectiveAdamW(model.layers, mask, mesh, lr=1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    split = Split.of(ROWS, comm.size, model.at_once(None))
    if isinstance(comm, SoloComm):
        engine = LocalEngine(model.module, optimizer, schedule)
    else:
        engine = DeepSpeedEngine(
            model.module,
            optimizer,
            schedule,
            user_config=ZERO_3,
            micro_batch_size=split.micro_batch_size,
            num_micro_batches=split.num_micro_batches,
        )
    promise = Promise.of(mask.numpy(), [row.unsafe for row in rows()])
    settings = TrainConfig()
    step = MaskedStep(model, optimizer, engine, comm, settings, lambda _: promise)
    found = []
    for chosen in [{"mode": "update"}, *ROUTES]:
        for name, value in chosen.items():
            setattr(settings, name, value)
        result = step("batch", mask, split.local(rows(), comm.rank, pad_id=0))
        found.append((result.loss, result.grad_norm, result.num_stepped))
    return found


def outcomes_of(comm, families):
    return {family: outcomes(comm, family) for family in families}


def check(families):
    alone = outcomes_of(CPU, families)
    for answer in run_ranks(2, outcomes_of, families):
        for family in families:
            for (loss, norm, stepped), expected in zip(answer[family], alone[family], strict=True):
                assert loss == pytest.approx(expected[0], abs=1e-4), family
                assert norm == pytest.approx(expected[1], rel=2e-3), family
                assert stepped == expected[2] > 0, family


def test_a_family_of_every_kind():
    check(KINDS)
