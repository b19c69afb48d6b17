"""Batches of other weights in one process, against plain transformers and torch AdamW; a weight of 1 changes no bit."""

import pytest
import torch

from dist_moe.config.schema import TrainConfig
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.split import Split
from dist_moe.training.step import MaskedStep
from tests.ranks.test_training import batch_rows, padded
from tests.reference import ADAMW, MAX_NORM, Reference
from tests.tiny import random_masks, tiny_model

CPU = SoloComm(torch.device("cpu"))
WEIGHTS = [0.25, 1.0, 4.0, 0.0, 0.5]
MASKS, ROWS = random_masks(len(WEIGHTS)), 6


def trained(weights):
    """Results and weights after a step for each; None: the step is given no weight."""
    model = adopt(tiny_model("qwen3_moe"), CPU)
    optimizer = SelectiveAdamW(model.layers, MASKS.any(0), Mesh.one_replica(CPU), **ADAMW, max_norm=MAX_NORM)
    engine = LocalEngine(model.module, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))
    labels = [row.unsafe for row in batch_rows(0, ROWS)]
    promises = [Promise.of(mask.numpy(), labels) for mask in MASKS]
    step = MaskedStep(model, optimizer, engine, CPU, TrainConfig(fill="shrink"), lambda number: promises[int(number)])
    results = []
    for i, weight in enumerate(weights):
        more = () if weight is None else (weight,)
        results.append(step(str(i), MASKS[i], Split.of(ROWS, 1, 2).local(batch_rows(i, ROWS), 0, pad_id=0), *more))
    rows = {(x.index, e, n): w.clone() for x in model.layers for e in x.local for n, w in x.row(e).items()}
    return results, rows


def test_equals_plain_transformers_with_the_loss_times_the_weight():
    results, rows = trained(WEIGHTS)
    reference = Reference("qwen3_moe", "route")
    for i, weight in enumerate(WEIGHTS):
        loss, norm = reference.step(MASKS[i], *padded(batch_rows(i, ROWS)), weight)
        assert results[i].loss == pytest.approx(loss, abs=1e-5)
        assert results[i].grad_norm == pytest.approx(norm, abs=1e-5)
        assert (results[i].num_stepped == 0) == (weight == 0)
    for key, expected in reference.weights().items():
        torch.testing.assert_close(rows[key], expected, rtol=0, atol=1e-5)


def test_a_weight_of_1_changes_no_bit():
    (_, weighted), (_, unweighted) = trained([1.0] * len(WEIGHTS)), trained([None] * len(WEIGHTS))
    assert all(torch.equal(weighted[key], row) for key, row in unweighted.items())
