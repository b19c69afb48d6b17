"""DenseWeights: dense weights that a run trains, with their optimizer state.

They are the same on every rank. Each rank keeps all of their state, gets the gradient that all ranks have summed, and
makes the same update, so that nothing has to be sent back.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from dist_moe.parallel.comm import Comm
from dist_moe.training.adam import AdamState, were_updated
from dist_moe.training.norms import row_norms


class DenseWeights:
    """Usage, in each step: `begin`, `collect` after each backward pass, `summed`, and `write` of what was updated."""

    def __init__(self, weights: Mapping[str, torch.Tensor], state_device: torch.device) -> None:
        """`weights` by name, the tensors that the model computes with."""
        self.weights = dict(weights)
        self.state = {
            name: AdamState.new(weight.detach().reshape(-1), state_device) for name, weight in self.weights.items()
        }
        self.is_active = False
        """Whether this step trains them."""
        self._buffer: torch.Tensor | None = None
        self.grads: dict[str, torch.Tensor] = {}
        """Flat fp32 views, one for each weight of an active step."""

    @property
    def changed(self) -> list[str]:
        """Names of the weights that were updated at least once."""
        return [*were_updated(self.state)]

    def begin(self, active: bool) -> None:
        """Say whether the next step trains them."""
        self.is_active = active and bool(self.weights)
        self.grads = {}
        if self.is_active:
            sizes = [weight.numel() for weight in self.weights.values()]
            if self._buffer is None:
                self._buffer = torch.empty(sum(sizes), device=next(iter(self.weights.values())).device)
            self.grads = dict(zip(self.weights, self._buffer.zero_().split(sizes), strict=True))

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of one backward pass in fp32, and take them away from the weights."""
        for name, grad in self.grads.items():
            weight = self.weights[name]
            if weight.grad is not None:
                grad += weight.grad.reshape(-1)
                weight.grad = None

    def summed(self, comm: Comm) -> dict[str, torch.Tensor]:
        """The gradients, summed over all ranks."""
        if self.is_active:
            assert self._buffer is not None
            comm.sum_(self._buffer)
        return self.grads

    def norms(self) -> torch.Tensor:
        """float64 [n], of each gradient."""
        return torch.cat([row_norms(grad.reshape(1, -1)) for grad in self.grads.values()])

    @torch.no_grad()
    def write(self, name: str) -> None:
        """Write the master weights to the model, rounded to its data type, unless they are the model's."""
        weight, state = self.weights[name], self.state[name]
        if not state.is_weight:
            weight.copy_(state.master.view_as(weight))

    @torch.no_grad()
    def restore(self, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore saved state: one tensor for each field of `AdamState`."""
        for field, tensor in self.state[name].tensors().items():
            tensor.copy_(tensors[field])
        self.write(name)
