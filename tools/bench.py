#!/usr/bin/env python
"""Speed and size against what one would use otherwise, side by side in one run.

    python tools/bench.py                        minutes; on CUDA where there is one
    python tools/bench.py --small                seconds: does it run
    python tools/bench.py --rows step --experts 128 --hidden 2048 --dtype bfloat16

Times of one machine say little, so the numbers to read are ratios: all contenders of a row run once a round, in an
order that rotates, a ratio is taken in every round, and the table shows the smallest, the median and the largest.
Before the clock starts, contenders must agree on what they compute. Rows:

- experts   all layers' experts, forward and backward, also to their inputs, on the routing of a real forward pass;
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
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import numpy as np
import torch
import tyro
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen3MoeConfig

from dist_moe.data.tokens import IGNORED, TokenBatch
from dist_moe.engines.local import LocalEngine
from dist_moe.moe.model import MoEModel, adopt
from dist_moe.moe.route_mask import RoutePlan, routable
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
    repetitions: int = 11
    """Rounds of each comparison, after one to warm up."""
    threads: int | None = None
    """CPU threads; default: torch's own choice."""
    store_shape: tuple[int, int, int] = (2000, 48, 128)
    """Batches, layers and experts of the mask store; the default needs 3.2 GiB of memory."""


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
    """Seconds in the same rounds; `ratios` are ours / other."""

    name: str
    ours: Sequence[float]
    other: Sequence[float]

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.other, strict=True)]


@dataclass(frozen=True, slots=True)
class Fact:
    """A number without a contender."""

    name: str
    value: str


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
        return routable(self.mask(i)).to(self.device) if mode == "route" else None

    def mask(self, i: int) -> torch.Tensor:
        return self.masks_BLE[i % len(self.masks_BLE)]

    def batch(self, i: int) -> TokenBatch:
        return self.batches[i % len(self.batches)]

    def compare(self, row: str, contenders: Mapping[str, Contender]) -> list[Comparison]:
        """The first contender against each of the others. It is the caller who warms up, by checking results."""
        seconds = measure(contenders, self.options.repetitions, self.device)
        ours, *others = contenders
        return [Comparison(f"{row} / {name}", seconds[ours], seconds[name]) for name in others]

    def check(self, actual: torch.Tensor, expected: torch.Tensor) -> None:
        """Contenders compute the same, up to rounding."""
        error = (actual.double() - expected.double()).norm() / expected.double().norm()
        limit = 1e-4 if self.options.dtype == "float32" else 5e-2
        assert error <= limit, f"contenders differ by {error:.1e}"


def _token_batch(ids_RS: torch.Tensor) -> TokenBatch:
    """No padding; loss on each row's second half."""
    is_completion = torch.zeros_like(ids_RS, dtype=torch.bool)
    is_completion[:, ids_RS.shape[1] // 2 :] = True
    labels = ids_RS.masked_fill(~is_completion, IGNORED)
    everywhere = torch.ones_like(is_completion)
    return TokenBatch(ids_RS, torch.ones_like(ids_RS), labels, is_completion, everywhere, is_unsafe=everywhere)


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


class PlainRouteMask:
    """Masked routing by its definition, in hooks on the routers of a qwen3_moe model."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.allowed_LE: torch.Tensor | None = None
        for index, layer in enumerate(model.model.layers):
            layer.mlp.gate.register_forward_hook(partial(self._route, index))

    def _route(self, index: int, router: nn.Module, args: Any, output: tuple[torch.Tensor, ...]) -> Any:
        if self.allowed_LE is None:
            return output
        logits_TE = output[0].masked_fill(~self.allowed_LE[index], float("-inf"))
        weights_Tk, index_Tk = logits_TE.float().softmax(-1).topk(router.top_k)
        weights_Tk = weights_Tk / weights_Tk.sum(-1, keepdim=True)
        return logits_TE, weights_Tk.to(logits_TE.dtype), index_Tk


class UsualStep:
    """What one would write: whole expert tensors require gradients, which are multiplied by the mask before AdamW."""

    def __init__(self, setup: Setup, mode: Mode) -> None:
        self.setup, self.mode, self.module = setup, mode, setup.plain_model()
        self.route_mask = PlainRouteMask(self.module)
        layers = enumerate(self.module.model.layers)
        self.weights = [(index, weight) for index, layer in layers for weight in layer.mlp.experts.parameters()]
        self.parameters = [weight.requires_grad_() for _, weight in self.weights]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LR, weight_decay=0.0, fused=True)

    def __call__(self, i: int) -> tuple[float, float]:
        """Loss and gradient norm."""
        batch, mask_LE = self.setup.batch(i), self.setup.mask(i).to(self.setup.device)
        self.route_mask.allowed_LE = self.setup.allowed(self.mode, i)
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        loss = token_losses(logits, batch.labels)[0].mean()
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


class OurStep:
    """`MaskedStep` on the local engine."""

    def __init__(self, setup: Setup, mode: Mode) -> None:
        model = setup.our_model()
        self.setup, self.optimizer = setup, setup.optimizer(model)
        engine = LocalEngine(model.module, self.optimizer, LambdaLR(self.optimizer, lambda _: 1.0))
        self.step = MaskedStep(
            model,
            self.optimizer,
            engine,
            setup.comm,
            lambda mask: RoutePlan(routable(mask)) if mode == "route" else None,
        )
        self.hashes = [mask_hash(mask_LE.numpy()) for mask_LE in setup.masks_BLE]

    def __call__(self, i: int) -> tuple[float, float]:
        """Loss and gradient norm."""
        result = self.step(self.setup.mask(i), self.hashes[i % len(self.hashes)], [self.setup.batch(i)])
        return result.loss, result.grad_norm

    def num_bytes(self) -> tuple[int, int]:
        """Gradients and optimizer state."""
        states = [getattr(state, name) for state in self.optimizer.expert_state.values() for name in state.__slots__]
        return self.optimizer.grad_AN.nbytes, sum(tensor.nbytes for tensor in states)


def bench_step(setup: Setup, mode: Mode) -> tuple[list[Comparison], list[Fact]]:
    """A training step, and what gradients and optimizer state take."""
    ours, usual = OurStep(setup, mode), UsualStep(setup, mode)
    for actual, right in zip(ours(0), usual(0), strict=True):
        setup.check(torch.tensor(actual), torch.tensor(right))
    comparisons = setup.compare(f"training step, {mode}", {"ours": ours, "whole tensors, gradients x mask": usual})
    facts = [
        Fact(f"{what}, {mode}: ours / usual", f"{a / 2**20:.1f} / {b / 2**20:.1f} MiB = {a / b:.3f}")
        for what, a, b in zip(("gradients", "optimizer state"), ours.num_bytes(), usual.num_bytes(), strict=True)
    ]
    return comparisons, facts


def bench_tap(setup: Setup) -> list[Comparison]:
    model = setup.our_model()

    @torch.no_grad()
    def silent(i: int) -> torch.Tensor:
        return model.module(input_ids=setup.batch(i).input_ids, use_cache=False).logits

    def counting(i: int) -> torch.Tensor:
        with torch.no_grad(), model.tap.count(setup.batch(i).live) as counts_RLE:
            silent(i)
        return counts_RLE

    silent(0)
    counts_RLE = counting(0)
    num_routed = setup.batch(0).live.sum() * setup.options.top_k
    assert (counts_RLE.sum((0, 2)) == num_routed).all(), "the tap missed a token"
    return setup.compare("forward, counting", {"ours": counting, "not counting": silent})


def bench_store(options: Options) -> list[Fact]:
    """A store as an analysis writes it: 16 prompts a batch, skewed counts, 50 experts a mask."""
    contents = _store_contents(*options.store_shape)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "masks.zarr"
        begin = time.perf_counter()
        write_store(path, contents)
        writing = time.perf_counter() - begin
        size = {name: _num_bytes(path / name) for name in (".", "masks")}
        opening, reading = [], []
        for batch in np.random.default_rng(1).integers(options.store_shape[0], size=options.repetitions):
            _forget_pages(path)
            begin = time.perf_counter()
            rows = MaskStore.open(path).masks
            opened = time.perf_counter()
            opening.append(opened - begin)
            _forget_pages(path)
            begin = time.perf_counter()
            mask_LE = rows[int(batch)]
            reading.append(time.perf_counter() - begin)
            assert (mask_LE == contents.masks.masks_BLE[batch]).all(), "the store gave another mask"
    shape = " x ".join(map(str, options.store_shape))
    return [
        Fact(f"store of {shape}: write", f"{writing:.2f} s, {size['.'] / 2**20:.1f} MiB"),
        Fact("store: bytes a mask cell", f"{size['masks'] / contents.masks.masks_BLE.size:.4f}"),
        Fact("store: open and check, cold", _milliseconds(opening)),
        Fact("store: one mask row, cold", _milliseconds(reading)),
    ]


def _store_contents(num_batches: int, num_layers: int, num_experts: int) -> StoreContents:
    generator = np.random.default_rng(0)
    # Drawing is slow, so these repeat; no batch shares a chunk with another, so they compress no better for it.
    num_drawn = min(num_batches, 40)
    num_prompts = num_batches * BATCH_ROWS
    unsafe_P = np.arange(num_prompts) % 2 == 1
    popularity_ALE = generator.lognormal(sigma=1.0, size=(2, num_layers, num_experts))
    popularity_ALE[1] = 0.7 * popularity_ALE[0] + 0.3 * popularity_ALE[1]
    drawn_PLE = generator.poisson(popularity_ALE[unsafe_P[: num_drawn * BATCH_ROWS].astype(int)])
    counts_PLE = np.resize(drawn_PLE, (num_prompts, num_layers, num_experts))
    top_k = 8
    tokens_P = np.maximum(counts_PLE.max((1, 2)), -(-counts_PLE.sum(2).max(1) // top_k))
    counts = RoutingCounts(counts_PLE, tokens_P, top_k)
    batch_of_P = np.arange(num_prompts) // BATCH_ROWS
    batch_ids = tuple(f"{batch:016x}" for batch in range(num_batches))
    risk = risk_table(counts, unsafe_P, batch_of_P, num_batches, batch_ids)
    rule = SelectionRule(threshold=0.05, top_k=50)
    return StoreContents(
        counts=counts,
        prompt_ids=tuple(f"prompt-{prompt}" for prompt in range(num_prompts)),
        unsafe_P=unsafe_P,
        batch_of_P=batch_of_P,
        batch_ids=batch_ids,
        categories=("category",) * num_batches,
        risk=risk,
        masks=masks_from(risk.risk_diff_BLE, rule),
        rule=rule,
        counted_tokens="prompt",
        layer_names=tuple(f"model.layers.{layer}.mlp.experts" for layer in range(num_layers)),
        provenance={"model_hash": "", "tokenizer_hash": "", "data_hash": ""},
    )


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


def _num_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in _files(path))


def _forget_pages(path: Path) -> None:
    """Make the kernel drop its copies of the files, as if another program had written them long ago."""
    for file in _files(path):
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)  # only clean pages are dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def _milliseconds(seconds: Sequence[float]) -> str:
    low, middle, high = (f"{1e3 * value:.2f}" for value in (min(seconds), median(seconds), max(seconds)))
    return f"{middle} ms ({low} to {high})"


def table(comparisons: Sequence[Comparison], facts: Sequence[Fact]) -> str:
    lines = []
    if comparisons:
        width = max(len(comparison.name) for comparison in comparisons)
        lines.append(f"{'':<{width}}  ours ms  other ms   ratio: min  median     max")
        for c in comparisons:
            times = f"{1e3 * median(c.ours):>7.1f}  {1e3 * median(c.other):>8.1f}"
            lines.append(
                f"{c.name:<{width}}  {times}  {min(c.ratios):>10.3f}  {median(c.ratios):>6.3f}  {max(c.ratios):>6.3f}"
            )
    if facts:
        width = max(len(fact.name) for fact in facts)
        lines += ["", *(f"{fact.name:<{width}}  {fact.value}" for fact in facts)]
    return "\n".join(lines)


def measure_all(options: Options) -> tuple[list[Comparison], list[Fact]]:
    """All rows that were asked for."""
    setup = Setup(options)
    comparisons: list[Comparison] = []
    facts: list[Fact] = []
    for mode in get_args(Mode) if "experts" in options.rows else ():
        comparisons += bench_experts(setup, mode)
    for mode in get_args(Mode) if "step" in options.rows else ():
        step_comparisons, step_facts = bench_step(setup, mode)
        comparisons += step_comparisons
        facts += step_facts
    if "tap" in options.rows:
        comparisons += bench_tap(setup)
    if "store" in options.rows:
        facts += bench_store(options)
    return comparisons, facts


def parse(arguments: Sequence[str]) -> Options:
    return tyro.cli(
        Options, args=arguments, description=__doc__, default=SMALL if "--small" in arguments else Options()
    )


def main() -> None:
    options = parse(sys.argv[1:])
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    print(describe(options), flush=True)
    print(table(*measure_all(options)))


def describe(options: Options) -> str:
    """What ran on what, in two lines."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    o = options
    return (
        f"torch {torch.__version__} on {device}, {o.dtype}, {o.repetitions} rounds; ratios are ours / other\n"
        f"{o.layers} layers, H {o.hidden}, I {o.intermediate}, E {o.experts}, k {o.top_k}, {o.tokens} tokens, "
        f"{max(1, round(o.share * o.experts))} trained experts a layer, {o.batches} masks\n"
    )


if __name__ == "__main__":
    main()
