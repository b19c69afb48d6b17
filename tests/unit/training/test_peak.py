"""What a process takes of the system's memory while it loads a model and trains: weights, state and gradients once.

In a process of its own, by Linux: pages that belong to no file. Those of mapped checkpoints are clean.
"""

import multiprocessing
import threading
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import transformers

from dist_moe.config.schema import ModelConfig, TrainConfig
from dist_moe.data.tokens import Encoded, collate
from dist_moe.engines.local import LocalEngine
from dist_moe.model.model import load_model
from dist_moe.parallel.comm import SoloComm
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.step import MaskedStep

LAYERS, EXPERTS, HIDDEN, INNER = 6, 8, 512, 1024
EXPERT_BYTES = 4 * 3 * HIDDEN * INNER
UNION, ACTIVE = 4, 1
"""Experts of each layer that some batch trains, and that one does."""


class Peak:
    """The most anonymous memory of this process while it is entered, over what it had before."""

    def __enter__(self):
        self._before = self.most = _anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._done.set()
        self._thread.join()
        self.most = max(self.most, _anonymous()) - self._before

    def _watch(self):
        while not self._done.wait(0.002):
            self.most = max(self.most, _anonymous())


def _anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _peak_of_training(path):
    torch.set_num_threads(1)
    comm = SoloComm(torch.device("cpu"))
    mask_LE = torch.zeros(LAYERS, EXPERTS, dtype=torch.bool)
    union_LE = mask_LE.clone()
    mask_LE[:, :ACTIVE], union_LE[:, :UNION] = True, True
    rows = [Encoded(tuple(range(3, 33)), tuple(range(33, 64)), unsafe=unsafe) for unsafe in (False, True)]
    promise = Promise.of(mask_LE.numpy(), [row.unsafe for row in rows])
    with Peak() as peak:
        model = load_model(ModelConfig(path=path), comm)
        optimizer = SelectiveAdamW(model.layers, union_LE, Mesh.one_replica(comm), lr=1e-3)
        engine = LocalEngine(model.module, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0))
        step = MaskedStep(model, optimizer, engine, comm, TrainConfig(mode="update"), lambda _: promise)
        for _ in range(2):
            assert step("a batch", mask_LE, [collate(rows, 0)]).num_stepped == LAYERS * ACTIVE
    return peak.most


def test_weights_state_and_gradients_are_there_once(tmp_path):
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=8, num_local_experts=EXPERTS, num_experts_per_tok=2,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(config)
    model.to_empty(device="cpu")
    for place, weight in enumerate(model.state_dict().values()):
        torch.nn.init.normal_(weight, std=0.02, generator=torch.Generator().manual_seed(place))
    model.save_pretrained(tmp_path)
    del model
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        peak = pool.submit(_peak_of_training, tmp_path).result(timeout=240)
    weights, state, gradients = EXPERTS, 2 * UNION, ACTIVE
    expected = LAYERS * EXPERT_BYTES * (weights + state + gradients)
    assert expected <= peak <= 1.25 * expected
