"""AdamW over a set of experts that changes at every step.

State (fp32 master weights, two moments, a step count) exists for the union's experts only, on the rank that holds them,
one flat row an expert. A step touches the rows of the batch's active experts; no other bit moves, which zeroed
gradients could not give: Adam's momentum and weight decay move a parameter long after its last gradient.

The update itself is torch's own functional AdamW. It is a `torch.optim.Optimizer`, so engines and learning-rate
schedulers accept it; its one registered parameter is a placeholder, because the weights are not `nn.Parameter`s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw

from dist_moe.errors import UserError
from dist_moe.moe.bank import ExpertLayer
from dist_moe.parallel.comm import Comm


@dataclass(frozen=True, slots=True)
class ExpertState:
    """One expert's optimizer state, flat vectors of all its weights: 12 bytes a parameter, and the step count."""

    master: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    step: torch.Tensor


class SelectiveAdamW(torch.optim.Optimizer):
    """`begin(mask)`, then backward passes, then `step()`; see the module's text.

    An active expert whose gradient is exactly zero (it got no token that the loss depends on) does not step, as
    torch's optimizers skip parameters without a gradient.
    """

    def __init__(
        self,
        layers: tuple[ExpertLayer, ...],
        union_LE: torch.Tensor,
        comm: Comm,
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        max_norm: float = 0.0,
    ) -> None:
        placeholder = torch.zeros(1, device=comm.device)
        super().__init__([placeholder], {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.layers, self.comm, self.max_norm = layers, comm, max_norm
        self.expert_state: dict[tuple[int, int], ExpertState] = {}
        for layer in layers:
            for expert in layer.local:
                if union_LE[layer.index, expert]:
                    self.expert_state[layer.index, expert] = _new_state(layer, expert)
        self.active: list[tuple[int, int]] = []
        # kept from step to step: on a CPU fresh memory of this size costs more than zeroing it
        self._grad_buffer = torch.empty(0, layers[0].layout.size, device=comm.device)
        self.last_norm = 0.0
        self.num_stepped = 0

    def begin(self, mask_LE: torch.Tensor) -> None:
        """Make exactly these experts trainable, bool [L, E], the same on all ranks. Before the first forward pass."""
        self.active = [key for key in self.expert_state if mask_LE[key]]
        if len(self._grad_buffer) < len(self.active):
            self._grad_buffer = self._grad_buffer.new_empty(len(self.active), self._grad_buffer.shape[1])
        self.grad_AN = self._grad_buffer[: len(self.active)].zero_()
        for layer in self.layers:
            layer.grads = {}
        for (index, expert), grad in zip(self.active, self.grad_AN, strict=True):
            layer = self.layers[index]
            layer.grads[layer.local.index(expert)] = layer.layout.views(grad)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # a step has no closure to re-evaluate
        """Clip by the global norm of all ranks' active experts, update them, and write the new weights to the banks."""
        norms_LE = torch.zeros(
            len(self.layers), len(self.layers[0].key_E), dtype=torch.float64, device=self.comm.device
        )
        for key, grad in zip(self.active, self.grad_AN, strict=True):
            norms_LE[key] = torch.linalg.vector_norm(grad, dtype=torch.float64)
        # a table, not a scalar: every entry has one owner, so the sum has the same bits for any number of ranks
        self.last_norm = float(torch.linalg.vector_norm(self.comm.sum_(norms_LE)))
        if not math.isfinite(self.last_norm):
            raise UserError(
                f"gradient norm is {self.last_norm}: this step changed no weight; lower train.lr or train in float32"
            )
        if 0 < self.max_norm < self.last_norm + 1e-6:
            self.grad_AN *= self.max_norm / (self.last_norm + 1e-6)
        self.num_stepped = int((norms_LE > 0).sum())
        stepping = [i for i, key in enumerate(self.active) if norms_LE[key] > 0]
        if stepping:
            self._update([self.expert_state[self.active[i]] for i in stepping], [self.grad_AN[i] for i in stepping])
        for i in stepping:
            self._write_back(self.active[i])

    @torch.no_grad()
    def restore(self, key: tuple[int, int], tensors: dict[str, torch.Tensor]) -> None:
        """Give expert (layer, expert) a state that was saved: one tensor a field of `ExpertState`."""
        for name, tensor in tensors.items():
            getattr(self.expert_state[key], name).copy_(tensor)
        self._write_back(key)

    def _write_back(self, key: tuple[int, int]) -> None:
        """The expert's weights in the bank become its master copy's, rounded to the bank's type."""
        layer, expert = self.layers[key[0]], key[1]
        new = layer.layout.views(self.expert_state[key].master)
        for name, row in layer.row(expert).items():
            row.copy_(new[name])

    def _update(self, states: list[ExpertState], grads: list[torch.Tensor]) -> None:
        group = self.param_groups[0]
        adamw(
            [s.master for s in states],
            grads,
            [s.exp_avg for s in states],
            [s.exp_avg_sq for s in states],
            [],
            [s.step for s in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to do: `begin` makes the gradient buffer of a batch."""


def _new_state(layer: ExpertLayer, expert: int) -> ExpertState:
    master = torch.cat([weight.reshape(-1) for weight in layer.row(expert).values()]).float()
    return ExpertState(
        master, torch.zeros_like(master), torch.zeros_like(master), torch.zeros((), device=master.device)
    )
