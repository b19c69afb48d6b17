"""All layers' experts alone, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from tools.bench.setup import Mode, PlainRouteMask, Setup
from tools.bench.timing import Comparison


def bench_experts(setup: Setup, mode: Mode) -> list[Comparison]:
    """All experts modules, forward and backward, on what their routers send them in a whole forward pass."""
    model, plain = setup.our_model(), setup.plain_model()
    optimizer = setup.optimizer(model)
    inputs = _experts_inputs(setup, plain, mode)
    our_modules = [layer.module for layer in model.layers]
    plain_modules = [layer.mlp.experts for layer in plain.model.layers]

    def forward_backward(modules: Sequence[nn.Module], i: int) -> list[torch.Tensor]:
        results = []
        for module, (hidden_TH, index_Tk, weights_Tk) in zip(modules, inputs[i % len(inputs)], strict=True):
            leaf_TH, weights_Tk = hidden_TH.clone().requires_grad_(), weights_Tk.clone().requires_grad_()
            out_TH = module(leaf_TH, index_Tk, weights_Tk)
            out_TH.backward(hidden_TH)
            results += [out_TH.detach(), leaf_TH.grad]
        return results

    def ours(i: int) -> list[torch.Tensor]:
        optimizer.begin(setup.mask(i))
        return forward_backward(our_modules, i)

    def whole(i: int) -> list[torch.Tensor]:
        for module in plain_modules:
            module.zero_grad(set_to_none=True)
            module.requires_grad_(True)
        return forward_backward(plain_modules, i)

    def frozen(i: int) -> list[torch.Tensor]:
        for module in plain_modules:
            module.requires_grad_(False)
        return forward_backward(plain_modules, i)

    ours_0, whole_0, frozen_0 = ours(0), whole(0), frozen(0)
    gradients = [view for layer in model.layers for slot in layer.grads for view in layer.grads[slot].values()]
    expected = [
        getattr(module, name).grad[slot]
        for layer, module in zip(model.layers, plain_modules, strict=True)
        for slot in layer.grads
        for name in layer.bank
    ]
    for actual, right in zip([*ours_0, *frozen_0, *gradients], [*whole_0, *whole_0, *expected], strict=True):
        setup.check(actual, right)
    others = {"grouped_mm, whole tensors": whole, "grouped_mm, frozen": frozen}
    return setup.compare(f"experts forward + backward, {mode}", {"ours": ours, **others})


def _experts_inputs(setup: Setup, plain: PreTrainedModel, mode: Mode) -> list[list[tuple[torch.Tensor, ...]]]:
    """Of every batch and layer: hidden [T, H], experts and weights [T, k]."""
    inputs: list[list[tuple[torch.Tensor, ...]]] = []
    mask = PlainRouteMask(plain)
    hooks = [
        layer.mlp.experts.register_forward_pre_hook(lambda _, args: inputs[-1].append(args))
        for layer in plain.model.layers
    ]
    for i in range(setup.options.batches):
        inputs.append([])
        mask.allowed_LE = setup.allowed(mode, i)
        with torch.no_grad():
            plain(input_ids=setup.batch(i).input_ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return inputs
