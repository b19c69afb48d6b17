"""A checkpoint of one number of ranks goes on with another: the same bits on the same layout, else within rounding."""

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from dist_moe.engines.deepspeed import DeepSpeedEngine
from dist_moe.engines.local import LocalEngine
from dist_moe.moe.model import adopt
from dist_moe.parallel.comm import SoloComm
from dist_moe.risk.masks import mask_hash
from dist_moe.training.checkpoint import last_checkpoint, load_checkpoint, save_checkpoint
from dist_moe.training.loop import Split
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.step import MaskedStep
from tests.ranks.harness import run_ranks
from tests.ranks.test_training import batch_rows, snapshot
from tests.reference import ADAMW, MAX_NORM
from tests.tiny import random_masks, tiny_model

ROWS, STEPS, MIDDLE = 8, 8, 5
FACTS = {"model_hash": "m", "seed": 3}


def halved(step: int) -> float:
    return 0.5**step


def run(comm, root, start, stop):
    """Steps start to stop of one run, from the checkpoint in `root` and to it: losses, and all bits at the end."""
    masks = random_masks(STEPS)
    model = adopt(tiny_model("mixtral", torch.bfloat16 if root.name == "bf16" else torch.float32), comm, masks.numpy())
    optimizer = SelectiveAdamW(model.layers, masks.any(0), comm, **ADAMW, max_norm=MAX_NORM)
    schedule = LambdaLR(optimizer, halved)
    split = Split.of(ROWS, comm.size, 2)
    if isinstance(comm, SoloComm):
        engine = LocalEngine(model.module, optimizer, schedule)
    else:
        sizes = {"micro_batch_size": split.micro_batch_size, "num_micro_batches": split.num_micro_batches}
        engine = DeepSpeedEngine(model.module, optimizer, schedule, user_config={}, **sizes)
    if start:
        found = last_checkpoint(root, FACTS, print)
        assert found is not None
        assert found.step == start
        load_checkpoint(found, optimizer, schedule)
    step = MaskedStep(model, optimizer, engine, comm, lambda mask: None)
    losses = []
    for i in range(start, stop):
        micro_batches = split.local(batch_rows(i, ROWS), comm.rank, pad_id=0)
        losses.append(step(masks[i], mask_hash(masks[i].numpy()), micro_batches).loss)
    save_checkpoint(root, stop, optimizer, schedule, comm, FACTS, keep=2)
    bits = {key: value.float().numpy() for key, value in snapshot(model.layers, optimizer).items()}
    return losses, bits, optimizer.param_groups[0]["lr"]


def on(num_ranks, *arguments):
    """Losses, all ranks' bits together, and the learning rate."""
    answers = [run(SoloComm(torch.device("cpu")), *arguments)] if num_ranks == 1 else run_ranks(2, run, *arguments)
    return answers[0][0], {key: value for _, bits, _ in answers for key, value in bits.items()}, answers[0][2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return {n: on(n, tmp_path_factory.mktemp("whole") / "checkpoints", 0, STEPS) for n in (1, 2)}


@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 2), (1, 2), (2, 1)])
def test_goes_on(whole, tmp_path, before, after):
    root = tmp_path / "checkpoints"
    first, _, _ = on(before, root, 0, MIDDLE)
    second, bits, lr = on(after, root, MIDDLE, STEPS)
    losses, expected, expected_lr = whole[after]
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
    _, expected, _ = on(1, tmp_path / "whole" / "bf16", 0, STEPS)
    on(1, root, 0, MIDDLE)
    _, bits, _ = on(1, root, MIDDLE, STEPS)
    assert all((bits[key] == value).all() for key, value in expected.items())
    assert any("master" in key for key in bits)
