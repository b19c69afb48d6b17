#!/usr/bin/env python
"""Speed and size against what one would use otherwise, side by side in one run.

    python tools/bench.py                        some minutes on two CPU cores; on CUDA where there is one
    python tools/bench.py --small                seconds: does it run
    python tools/bench.py --rows step --experts 128 --hidden 2048 --dtype bfloat16

Times of one machine say little, so the numbers to read are ratios: all contenders of a row run once a round, in an order
that rotates, a ratio is taken in every round, and the table shows the smallest, the median and the largest. Before the
clock starts, contenders must agree on what they compute. Rows:

- experts   all layers' experts, forward and backward, inputs requiring gradients, on the routing of a real forward pass;
            against transformers' "grouped_mm" with whole trainable tensors, and with frozen ones (no weight gradients)
- step      one training step, against the usual way: whole expert tensors, gradients times the mask, torch's AdamW
- tap       a forward pass with counting against one without
- store     a mask store: writing, bytes a mask cell, reading one batch's mask with no page of it in memory
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import numpy as np
import torch
import tyro
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig

from dist_moe.data.tokens import IGNORED, TokenBatch
from dist_moe.engines.local import LocalEngine
from dist_moe.moe.discover import MoELayer, find_moe_layers
from dist_moe.moe.model import MoEModel, adopt
from dist_moe.moe.route_mask import RouteMask, routable
from dist_moe.parallel.comm import SoloComm
from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.masks import mask_hash
from dist_moe.risk.select import SelectionRule, masks_from
from dist_moe.risk.table import risk_table
from dist_moe.store import MaskStore, StoreContents, write_store
from dist_moe.training.loss import token_losses
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.step import MaskedStep

Mode = Literal["update", "route"]
Row = Literal["experts", "step", "tap", "store"]
Contender = Callable[[int], Any]
"""Called with the number of the round, which says which batch and mask it works on."""

BATCH_ROWS = 16
LR, MAX_NORM = 1e-5, 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    small: bool = False
    """Sizes that run in seconds, for all options that are not given."""
    rows: tuple[Row, ...] = get_args(Row)
    """What to measure."""
    layers: int = 4
    hidden: int = 512
    intermediate: int = 256
    """Inner size of one expert."""
    experts: int = 64
    top_k: int = 8
    tokens: int = 1024
    """Tokens a batch, in 16 rows."""
    share: float = 0.1
    """Share of each layer's experts that a batch trains."""
    batches: int = 4
    """Different batches, each with its own random mask; optimizer state exists for the union."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    repetitions: int = 15
    """Rounds of each comparison, after one to warm up."""
    threads: int | None = None
    """CPU threads; default: torch's own choice."""
    store_shape: tuple[int, int, int] = (2000, 48, 128)
    """Batches, layers and experts of the mask store."""


SMALL = Options(
    layers=2,
    hidden=64,
    intermediate=32,
    experts=16,
    top_k=4,
    tokens=128,
    share=0.2,
    batches=2,
    repetitions=3,
    store_shape=(40, 4, 16),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Seconds of the same rounds; `ratios` are ours / other."""

    name: str
    ours: Sequence[float]
    other: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.other, strict=True)]


def measure(contenders: Mapping[str, Contender], repetitions: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each contender in each round; the one that starts a round changes from round to round."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(repetitions):
        start = i % len(names)
        for name in names[start:] + names[:start]:
            _synchronize(device)
            begin = time.perf_counter()
            contenders[name](i)
            _synchronize(device)
            seconds[name].append(time.perf_counter() - begin)
    return seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Setup:
    """The same model twice, as ours and as transformers', with the batches and masks of all rounds."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.comm = SoloComm(self.device)
        generator = torch.Generator().manual_seed(0)
        num_trained = max(1, round(options.share * options.experts))
        scores_BLE = torch.rand(options.batches, options.layers, options.experts, generator=generator)
        self.masks_BLE = scores_BLE >= scores_BLE.topk(num_trained).values[..., -1:]
        length = options.tokens // BATCH_ROWS
        ids_BRS = torch.randint(self.config.vocab_size, (options.batches, BATCH_ROWS, length), generator=generator)
        self.batches = [_token_batch(ids_RS.to(self.device)) for ids_RS in ids_BRS]

    @property
    def config(self) -> Qwen3MoeConfig:
        o = self.options
        return Qwen3MoeConfig(
            vocab_size=4096,
            hidden_size=o.hidden,
            num_hidden_layers=o.layers,
            num_attention_heads=max(1, o.hidden // 64),
            num_key_value_heads=max(1, o.hidden // 64),
            head_dim=64,
            moe_intermediate_size=o.intermediate,
            num_experts=o.experts,
            num_experts_per_tok=o.top_k,
            norm_topk_prob=True,
        )

    def plain_model(self) -> PreTrainedModel:
        """Frozen, with transformers' own grouped experts; the same weights at every call."""
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(self.config, dtype=getattr(torch, self.options.dtype))
        model.set_experts_implementation("grouped_mm")
        return model.to(self.device).eval().requires_grad_(False)

    def our_model(self) -> MoEModel:
        model = adopt(self.plain_model(), self.comm)
        model.train_from(0)
        return model

    def optimizer(self, model: MoEModel) -> SelectiveAdamW:
        return SelectiveAdamW(model.layers, self.masks_BLE.any(0), self.comm, lr=LR, max_norm=MAX_NORM)

    def allowed(self, mode: Mode, i: int) -> torch.Tensor | None:
        return routable(self.masks_BLE[i % len(self.masks_BLE)]) if mode == "route" else None

    def mask(self, i: int) -> torch.Tensor:
        return self.masks_BLE[i % len(self.masks_BLE)]

    def batch(self, i: int) -> TokenBatch:
        return self.batches[i % len(self.batches)]

    def compare(self, row: str, contenders: Mapping[str, Contender]) -> list[Comparison]:
        """The first contender against each of the others. It is the caller who warms up, by checking results."""
        seconds = measure(contenders, self.options.repetitions, self.device)
        ours, *others = contenders
        return [Comparison(f"{row} / {name}", seconds[ours], seconds[name]) for name in others]

    def assert_close(self, actual: Any, expected: Any) -> None:
        tolerance = 1e-3 if self.options.dtype == "float32" else 5e-2
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def _token_batch(ids_RS: torch.Tensor) -> TokenBatch:
    """No padding; loss on each row's second half."""
    is_completion = torch.zeros_like(ids_RS, dtype=torch.bool)
    is_completion[:, ids_RS.shape[1] // 2 :] = True
    labels = ids_RS.masked_fill(~is_completion, IGNORED)
    return TokenBatch(ids_RS, torch.ones_like(ids_RS), labels, is_completion, torch.ones_like(is_completion))


def bench_experts(setup: Setup, mode: Mode) -> list[Comparison]:
    model, plain = setup.our_model(), setup.plain_model()
    plain_layers = find_moe_layers(plain)
    optimizer = setup.optimizer(model)
    route_mask = RouteMask(plain_layers, setup.options.experts, setup.device)
    inputs = []
    for i in range(setup.options.batches):
        route_mask.set(setup.allowed(mode, i))
        inputs.append(_experts_inputs(plain, plain_layers, setup.batch(i)))
    route_mask.set(None)
    our_modules = [layer.module for layer in model.layers]
    plain_modules = [layer.experts for layer in plain_layers]

    def forward_backward(modules: Sequence[torch.nn.Module], i: int) -> tuple[torch.Tensor, ...]:
        """Outputs of all layers, and gradients of their inputs."""
        results = []
        for module, (hidden, index, weights) in zip(modules, inputs[i % len(inputs)], strict=True):
            hidden, weights = hidden.detach().requires_grad_(), weights.detach().requires_grad_()
            out = module(hidden, index, weights)
            out.backward(hidden.detach())
            results += [out.detach(), hidden.grad, weights.grad]
        return tuple(results)

    def ours(i: int) -> tuple[torch.Tensor, ...]:
        optimizer.begin(setup.mask(i))
        return forward_backward(our_modules, i)

    def whole(i: int) -> tuple[torch.Tensor, ...]:
        for module in plain_modules:
            module.zero_grad(set_to_none=True)
            module.requires_grad_(True)
        return forward_backward(plain_modules, i)

    def frozen(i: int) -> tuple[torch.Tensor, ...]:
        for module in plain_modules:
            module.requires_grad_(False)
        return forward_backward(plain_modules, i)

    setup.assert_close(_no_filler_grads(ours(0)), _no_filler_grads(whole(0)))
    setup.assert_close(_trained_grads(optimizer), _rows_of_whole_grads(plain_layers, optimizer))
    frozen(0)
    return setup.compare(
        f"experts, {mode}", {"ours": ours, "whole tensors": whole, "frozen, no weight gradients": frozen}
    )
