"""A checkpoint of one number of ranks goes on with another: the same bits on the same layout, else within rounding."""

import shutil
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from dist_moe.config.schema import TrainConfig
from dist_moe.engines.deepspeed import DeepSpeedEngine
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import Placement
from dist_moe.training.checkpoint_index import Layout, last_checkpoint
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.restore import load_checkpoint
from dist_moe.training.saving import CheckpointSaver
from dist_moe.training.split import Split
from dist_moe.training.state import Position, RevisionInForce, TrainState
from dist_moe.training.step import MaskedStep
from tests.ranks.harness import run_ranks
from tests.ranks.test_training import batch_rows, snapshot
from tests.reference import ADAMW, MAX_NORM
from tests.tiny import random_masks, tiny_model

CPU = SoloComm(torch.device("cpu"))
ROWS, STEPS, MIDDLE = 8, 8, 5
FACTS = {"model_hash": "m", "seed": 3}
FIRST = TrainState.first(Position(0, 0, tuple(range(STEPS))), STEPS, RevisionInForce(0, "d"), seed=3)


def halved(step: int) -> float:
    return 0.5**step


def run(comm, ep_size, root, start, stop):
    """Steps start to stop of one run, from the checkpoint in `root` and to it: losses, and all bits at the end."""
    masks = random_masks(STEPS)
    mesh = Mesh.of(comm, ep_size)
    placement = Placement.balanced(masks.numpy(), mesh.ep.size)
    dtype = torch.bfloat16 if root.name == "bf16" else torch.float32
    model = adopt(tiny_model("mixtral", dtype), mesh.ep, placement)
    optimizer = SelectiveAdamW(model.layers, masks.any(0), mesh, **ADAMW, max_norm=MAX_NORM)
    schedule = LambdaLR(optimizer, halved)
    split = Split.of(ROWS, comm.size, 2)
    if isinstance(comm, SoloComm):
        engine = LocalEngine(model.module, optimizer, schedule)
    else:
        sizes = {"micro_batch_size": split.micro_batch_size, "num_micro_batches": split.num_micro_batches}
        engine = DeepSpeedEngine(model.module, optimizer, schedule, user_config={}, **sizes)
    if start:
        found = last_checkpoint(root, FACTS)
        assert found is not None
        assert found.step == start
        load_checkpoint(found, optimizer, schedule)
    labels = [row.unsafe for row in batch_rows(0, ROWS)]
    settings = TrainConfig(mode="update")
    step = MaskedStep(
        model, optimizer, engine, comm, settings, lambda number: Promise.of(masks[int(number)].numpy(), labels)
    )
    losses = []
    for i in range(start, stop):
        micro_batches = split.local(batch_rows(i, ROWS), comm.rank, pad_id=0)
        losses.append(step(str(i), masks[i], micro_batches).loss)
    layout = Layout(engine.name, comm.size, mesh.ep.size, placement.hash())
    saver = CheckpointSaver(
        root=root,
        optimizer=optimizer,
        schedule=schedule,
        comm=comm,
        facts=FACTS,
        layout=layout,
        keep=2,
        asynchronous=False,
    )
    saver.save(replace(FIRST, step=stop))
    bits = {key: value.float().numpy() for key, value in snapshot(model.layers, optimizer).items()}
    return losses, bits, optimizer.param_groups[0]["lr"]


LAYOUTS = {"one rank": (1, 1), "two ranks": (2, 2), "two replicas": (2, 1)}
"""Number of ranks, and of those that share a replica's experts."""


def run_all(comm, runs):
    return [run(comm, *arguments) for arguments in runs]


def on(runs):
    """Of each run (layout, root, start, stop): losses, all ranks' bits together, and the learning rate."""
    results = {}
    for num_ranks in (1, 2):
        these = [one for one in runs if LAYOUTS[one[0]][0] == num_ranks]
        arguments = [(LAYOUTS[layout][1], *rest) for layout, *rest in these]
        answers = [run_all(CPU, arguments)] if num_ranks == 1 else run_ranks(num_ranks, run_all, arguments)
        for one, *of_ranks in zip(these, *answers, strict=True):
            bits = {key: value for _, bits, _ in of_ranks for key, value in bits.items()}
            results[one] = of_ranks[0][0], bits, of_ranks[0][2]
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Whole runs by layout, first halves by layout, and second halves by (layout before, layout after)."""
    root = tmp_path_factory.mktemp("runs")
    wholes = {layout: (layout, root / "whole" / layout, 0, STEPS) for layout in LAYOUTS}
    firsts = {layout: (layout, root / "first" / layout, 0, MIDDLE) for layout in LAYOUTS}
    found = on([*wholes.values(), *firsts.values()])
    seconds = {pair: (pair[1], root / " to ".join(pair), MIDDLE, STEPS) for pair in product(LAYOUTS, LAYOUTS)}
    for (before, _), (_, path, *_) in seconds.items():
        shutil.copytree(firsts[before][1], path)
    found |= on([*seconds.values()])
    return [{key: found[one] for key, one in runs.items()} for runs in (wholes, firsts, seconds)]


@pytest.mark.parametrize("before", LAYOUTS)
@pytest.mark.parametrize("after", LAYOUTS)
def test_goes_on(results, before, after):
    wholes, firsts, seconds = results
    first, _, _ = firsts[before]
    second, bits, lr = seconds[before, after]
    losses, expected, expected_lr = wholes[after]
    assert first + second == pytest.approx(losses, abs=1e-5)
    assert lr == expected_lr == ADAMW["lr"] * 0.5**STEPS
    assert bits.keys() == expected.keys()
    for key, value in expected.items():
        if before == after:
            assert (bits[key] == value).all(), key
        else:
            assert abs(bits[key] - value).max() <= 1e-5, key


def test_bfloat16_weights_are_the_rounded_master_copies(tmp_path):
    root = tmp_path / "bf16"
    _, expected, _ = run(CPU, 1, tmp_path / "whole" / "bf16", 0, STEPS)
    run(CPU, 1, root, 0, MIDDLE)
    _, bits, _ = run(CPU, 1, root, MIDDLE, STEPS)
    assert all((bits[key] == value).all() for key, value in expected.items())
    assert any("master" in key for key in bits)
