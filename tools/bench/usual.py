"""The usual way: whole expert tensors require gradients, which are multiplied by the mask before AdamW."""

from __future__ import annotations

import torch

from dist_moe.training.loss import token_losses
from tools.bench.setup import BETAS, EPS, LR, MAX_NORM, Mode, PlainRouteMask, Setup


class UsualStep:
    def __init__(self, setup: Setup, mode: Mode) -> None:
        self.setup, self.mode, self.module = setup, mode, setup.plain_model()
        self.route_mask = PlainRouteMask(self.module)
        layers = enumerate(self.module.model.layers)
        self.weights = [(index, weight) for index, layer in layers for weight in layer.mlp.experts.parameters()]
        self.parameters = [weight.requires_grad_() for _, weight in self.weights]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, betas=BETAS, eps=EPS, weight_decay=0.0, fused=True)

    def __call__(self, i: int) -> tuple[float, float]:
        """Loss and gradient norm."""
        batch, mask_LE = self.setup.batch(i), self.setup.mask(i).to(self.setup.device)
        self.route_mask.allowed_LE = self.setup.allowed(self.mode, i)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.module(input_ids=batch.input_ids, use_cache=False).logits
        loss = token_losses(logits, batch.labels).mean()
        loss.backward()
        for layer, weight in self.weights:
            weight.grad *= mask_LE[layer, :, None, None]
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.optimizer.step()
        return loss.item(), norm.item()

    def num_bytes(self) -> tuple[int, int]:
        """Gradients and optimizer state."""
        states = [tensor for state in self.optimizer.state.values() for tensor in state.values()]
        return sum(weight.grad.nbytes for weight in self.parameters), sum(tensor.nbytes for tensor in states)
