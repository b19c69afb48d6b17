"""Each of two ranks keeps half of the dense weights' bytes, whatever has run last, with the shipped DeepSpeed file."""

import json
from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from dist_moe.config.schema import TrainConfig
from dist_moe.engines.deepspeed import DeepSpeedEngine
from dist_moe.engines.fsdp import FsdpEngine
from dist_moe.model.model import adopt
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import Placement
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.price import route_price
from dist_moe.training.promise import Promise
from dist_moe.training.split import Split
from dist_moe.training.step import MaskedStep, route_plan
from tests.ranks.harness import run_ranks
from tests.ranks.test_training import Case, batch_rows, masks_of
from tests.reference import ADAMW, MAX_NORM
from tests.tiny import E, L, tiny_model

SHIPPED = Path(__file__).resolve().parents[2] / "ds_configs" / "stage3.json"
ROWS = 8
MASKS = masks_of(Case(masks="adversarial"))
EVENTS = {
    "all trained": 7,
    "last layer only": 1,
    "nothing trained": 5,
    "one rank idle": 0,
    "nothing again": 5,
    "all": 7,
}
"""Which mask a step has."""


def resident(module: torch.nn.Module) -> int:
    """Bytes of this rank's pieces and of what is whole, each memory once."""
    bytes_of = {}
    for parameter in module.parameters():
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter.data
        for tensor in (local, getattr(parameter, "ds_tensor", local)):
            storage = tensor.untyped_storage()
            bytes_of[storage.data_ptr()] = storage.nbytes()
    return sum(bytes_of.values())


def shares(comm, family: str, engine_name: str, section: dict) -> dict[str, float]:
    """After each event: this rank's share of the dense weights' bytes."""
    mesh = Mesh.of(comm, None)
    model = adopt(tiny_model(family), mesh.ep, Placement.contiguous(L, E, mesh.ep.size))
    whole = sum(parameter.nbytes for parameter in model.module.parameters())
    optimizer = SelectiveAdamW(model.layers, MASKS.any(0), mesh, **ADAMW, max_norm=MAX_NORM)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    split = Split.of(ROWS, comm.size, 2)
    if engine_name == "fsdp":
        engine = FsdpEngine(model.module, optimizer, schedule, comm)
    else:
        engine = DeepSpeedEngine(
            model.module,
            optimizer,
            schedule,
            user_config={"zero_optimization": section},
            micro_batch_size=split.micro_batch_size,
            num_micro_batches=split.num_micro_batches,
        )
    found = {"start": resident(model.module) / whole}

    def promise(batch_id: str) -> Promise:
        rows = batch_rows(int(batch_id), ROWS)
        return Promise.of(MASKS[int(batch_id)].numpy(), [row.unsafe for row in rows])

    step = MaskedStep(model, optimizer, engine, comm, TrainConfig(), promise)

    def forward(name: str) -> None:
        plan = route_plan(TrainConfig(), MASKS[0])
        route_price(model, split.local(batch_rows(0, ROWS), comm.rank, pad_id=0), plan, comm)
        engine.release()
        found[name] = resident(model.module) / whole

    forward("forward")
    for name, number in EVENTS.items():
        step(str(number), MASKS[number], split.local(batch_rows(number, ROWS), comm.rank, pad_id=0))
        found[name] = resident(model.module) / whole
    forward("forward again")
    return found


CASES = {
    "fsdp": ("fsdp", {}),
    "stage3.json": ("deepspeed", json.loads(SHIPPED.read_text())["zero_optimization"]),
    "nothing kept": (
        "deepspeed",
        {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0},
    ),
}


def all_shares(comm):
    return [shares(comm, "olmoe", *case) for case in CASES.values()]


@pytest.fixture(scope="module")
def answers():
    """By case, of each rank; in the same processes, which take longest to start."""
    return dict(zip(CASES, zip(*run_ranks(2, all_shares), strict=True), strict=True))


@pytest.mark.timeout(500)
@pytest.mark.parametrize("name", CASES)
def test_each_of_two_ranks_keeps_half(answers, name):
    for answer in answers[name]:
        assert answer == pytest.approx(dict.fromkeys(answer, 0.5), abs=0.01), answer
        assert len(answer) == len(EVENTS) + 3
