"""Our step."""

from __future__ import annotations

import torch
from torch.optim.lr_scheduler import LambdaLR

from dist_moe.config.schema import TrainConfig
from dist_moe.engines.build import EngineName, build_engine
from dist_moe.training.promise import Promise
from dist_moe.training.split import Split
from dist_moe.training.step import MaskedStep
from tools.bench.memory import bytes_outside
from tools.bench.setup import BATCH_ROWS, Mode, Setup


class OurStep:
    """`MaskedStep` on an engine."""

    def __init__(self, setup: Setup, mode: Mode, engine_name: EngineName = "local") -> None:
        model = setup.our_model()
        self.setup, self.optimizer = setup, setup.optimizer(model)
        curve = LambdaLR(self.optimizer, lambda _: 1.0)
        split = Split.of(BATCH_ROWS, setup.comm.size, None)
        engine = build_engine(engine_name, model, self.optimizer, curve, setup.comm, {}, split)
        self.step = MaskedStep(
            model,
            self.optimizer,
            engine,
            setup.comm,
            TrainConfig(mode=mode, fill="shrink"),  # what the floor computes
            lambda number: Promise.of(setup.mask(int(number)).numpy(), [True] * BATCH_ROWS),
        )

    def __call__(self, i: int) -> tuple[float, float]:
        """Loss and gradient norm."""
        result = self.step(str(i), self.setup.mask(i), [self.setup.batch(i)])
        return result.loss, result.grad_norm

    def trained(self, i: int) -> torch.Tensor:
        """The weights that batch i trains, flat, fp32."""
        mask_LE = self.setup.mask(i)
        return torch.cat([state.master for key, state in self.optimizer.expert_state.items() if mask_LE[key]])

    def weights(self) -> list[torch.Tensor]:
        model = self.step.model
        return [*model.module.parameters(), *(bank for layer in model.layers for bank in layer.bank.values())]

    def vectors(self) -> list[torch.Tensor]:
        states = self.optimizer.expert_state.values()
        return [each for state in states for each in (state.master, state.exp_avg, state.exp_avg_sq)]

    def num_bytes(self) -> tuple[int, int]:
        """Gradients and optimizer state: counted, whatever the optimizer says of itself."""
        return self.optimizer.grad_AN.nbytes, bytes_outside(self.vectors(), self.weights())
