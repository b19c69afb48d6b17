"""A tiny model of a family, and its training step on an engine."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR

from dist_moe.config.schema import TrainConfig
from dist_moe.conformance.sizes import VOCAB, build
from dist_moe.engines.build import EngineName, build_engine
from dist_moe.model.model import adopt
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.mesh import Mesh
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.promise import Promise
from dist_moe.training.split import Split
from dist_moe.training.step import MaskedStep
from tools.gpu_check.here import token_batch

ROWS = 4


class Tiny:
    """Each step has a mask and rows of its own; the second mask leaves the first layer without an expert."""

    def __init__(
        self,
        family: str,
        mode: Any,
        dtype: torch.dtype,
        comm: Comm,
        engine: EngineName,
        state_device: torch.device | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        self.model = adopt(build(family).to(comm.device, dtype), comm)
        shape = (4, self.model.shape.num_layers, self.model.shape.num_experts)
        self.masks_BLE = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.35
        self.masks_BLE[1, 0] = False
        mesh, settings = Mesh.one_replica(comm), {"lr": 1e-3, "eps": 1e-6, "max_norm": 1.0}
        self.optimizer = SelectiveAdamW(
            self.model.layers, self.masks_BLE.any(0), mesh, **settings, state_device=state_device
        )
        schedule = LambdaLR(self.optimizer, lambda _: 1.0)
        host = build_engine(engine, self.model, self.optimizer, schedule, comm, {}, Split.of(ROWS, 1, None))
        settings_of_step = TrainConfig(mode=mode, compile=compiled)
        self._step = MaskedStep(self.model, self.optimizer, host, comm, settings_of_step, self._promise)

    def _promise(self, batch_id: str) -> Promise:
        return Promise.of(self.masks_BLE[int(batch_id)].numpy(), [i % 2 == 1 for i in range(ROWS)])

    def step(self, i: int, *, packed: bool = False) -> float:
        """The loss."""
        return self._step(str(i), self.masks_BLE[i], [token_batch(VOCAB, rows=ROWS, seed=i, packed=packed)]).loss

    def look(self, length: int) -> None:
        """Let compiled parts see other rows first: a forward pass without gradients."""
        assert self._step.compiled is not None
        batch = token_batch(VOCAB, rows=2, length=length, seed=9).to(self.model.layers[0].comm.device)
        with torch.no_grad(), self._step.compiled.in_force():
            self.model.module(**batch.inputs)
