"""Mask stores on disk: writing them, their size and files, and reading one batch's mask in a fresh open."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from dist_moe.rules.threshold_top_k import ThresholdTopK
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.order import selected
from dist_moe.stats.table import RiskTable, risk_table
from dist_moe.store import BatchResults, MaskStore, StorePlan, StoreWriter
from tools.bench.setup import BATCH_ROWS, Options
from tools.bench.timing import Fact

GOAL_BITS, GOAL_FILES, GOAL_MS = 1.1, 999.0, 5.0


def bench_store(options: Options) -> list[Fact]:
    """A store as an analysis writes it (16 prompts a batch, skewed counts), and one with very many masks."""
    plan = _plan(*options.store_shape, rows=BATCH_ROWS)
    sparse = SparseMasks(*options.masks_shape)
    full = _measure("store", plan, partial(_results(plan).of, plan), options.store_shape, options.repetitions)
    del full["store: bits a mask cell"]  # its masks repeat within a file
    masks = _measure("masks", sparse.plan, sparse.results, options.masks_shape, options.repetitions)
    return [Fact(name, value) for name, value in (full | masks).items()]


def _measure(
    name: str,
    plan: StorePlan,
    results: Callable[[range], BatchResults],
    shape: tuple[int, int, int],
    repetitions: int,
) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "masks.zarr"
        writing = 0.0
        writer = StoreWriter(path, plan)
        rows = len(writer.missing[0])
        for batches in writer.missing:
            found = results(batches)
            begin = time.perf_counter()
            writer.write(batches, found)
            writing += time.perf_counter() - begin
        begin = time.perf_counter()
        writer.seal()
        writing += time.perf_counter() - begin
        opening, reading = [], []
        for batch in np.random.default_rng(1).integers(len(plan.batch_ids), size=repetitions).tolist():
            start = batch - batch % rows
            expected_LE = results(range(start, min(start + rows, shape[0]))).masks.masks_BLE[batch - start]
            _forget_pages(path)
            begin = time.perf_counter()
            store = MaskStore.open(path)
            opened = time.perf_counter()
            mask_LE = store.masks[batch]
            read = time.perf_counter()
            opening.append(1e3 * (opened - begin))
            reading.append(1e3 * (read - begin))
            assert (mask_LE == expected_LE).all(), "the store gave another mask"
        bits = 8 * _num_bytes(path / "masks") / np.prod(shape)
        return {
            f"{name} of {' x '.join(map(str, shape))}: write": f"{writing:.1f} s, {_num_bytes(path) / 2**20:.1f} MiB",
            f"{name}: bits a mask cell": _judged(f"{bits:.3f}", bits, GOAL_BITS),
            f"{name}: files": _judged(str(len(_files(path))), len(_files(path)), GOAL_FILES),
            f"{name}: open, cold": _judged(_spread(opening), median(opening), GOAL_MS),
            f"{name}: open and one mask row, cold": _judged(_spread(reading), median(reading), GOAL_MS),
        }


class SparseMasks:
    """Random masks of 50 experts, which compress worst; rates and counts are zeros, which take no room."""

    def __init__(self, num_batches: int, num_layers: int, num_experts: int) -> None:
        self.shape_LE = num_layers, num_experts
        self.plan = _plan(num_batches, num_layers, num_experts, rows=2)

    def results(self, batches: range) -> BatchResults:
        generator = np.random.default_rng(batches.start)
        num_cells = self.shape_LE[0] * self.shape_LE[1]
        ranks_BX = generator.random((len(batches), num_cells), np.float32)
        masks_BX = np.zeros(ranks_BX.shape, np.bool_)
        np.put_along_axis(masks_BX, np.argpartition(ranks_BX, 50, axis=1)[:, :50], True, axis=1)
        zeros_BLE = np.zeros((len(batches), *self.shape_LE))
        num_prompts = 2 * len(batches)
        counts = RoutingCounts(np.zeros((num_prompts, *self.shape_LE), np.int64), np.zeros(num_prompts, np.int64), 8)
        masks = ExpertMasks(masks_BX.reshape(len(batches), *self.shape_LE))
        return BatchResults(counts=counts, risk=RiskTable(zeros_BLE, zeros_BLE), masks=masks)


def _plan(num_batches: int, num_layers: int, num_experts: int, rows: int) -> StorePlan:
    num_prompts = num_batches * rows
    return StorePlan(
        prompt_ids=tuple(f"prompt-{prompt}" for prompt in range(num_prompts)),
        unsafe_P=np.arange(num_prompts) % 2 == 1,
        batch_of_P=np.arange(num_prompts) // rows,
        batch_ids=tuple(f"{batch:016x}" for batch in range(num_batches)),
        categories=("category",) * num_batches,
        num_experts=num_experts,
        experts_per_token=8,
        selection_rule=ThresholdTopK(threshold=0.05, top_k=50).facts,
        counted_tokens="prompt",
        layer_names=tuple(f"model.layers.{layer}.mlp.experts" for layer in range(num_layers)),
        provenance={"model_hash": "", "tokenizer_hash": "", "data_hash": ""},
        statistics={},
    )


def _results(plan: StorePlan) -> BatchResults:
    num_batches, num_layers, num_experts = plan.shape_BLE
    generator = np.random.default_rng(0)
    # Drawing is slow, so these repeat; rates and counts compress no better for it, as no two batches share a chunk.
    num_drawn = min(num_batches, 40)
    popularity_ALE = generator.lognormal(sigma=1.0, size=(2, num_layers, num_experts))
    popularity_ALE[1] = 0.7 * popularity_ALE[0] + 0.3 * popularity_ALE[1]
    drawn_PLE = generator.poisson(popularity_ALE[plan.unsafe_P[: num_drawn * BATCH_ROWS].astype(int)])
    counts_PLE = np.resize(drawn_PLE, (len(plan.prompt_ids), num_layers, num_experts))
    top_k = plan.experts_per_token
    tokens_P = np.maximum(counts_PLE.max((1, 2)), -(-counts_PLE.sum(2).max(1) // top_k))
    counts = RoutingCounts(counts_PLE, tokens_P, top_k)
    risk = risk_table(counts, plan.unsafe_P, plan.batch_of_P, num_batches, plan.batch_ids)
    rule = ThresholdTopK(threshold=0.05, top_k=50)
    masks = ExpertMasks(np.array([selected(diff_LE, rule.threshold, rule.top_k) for diff_LE in risk.risk_diff_BLE]))
    return BatchResults(counts=counts, risk=risk, masks=masks)


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


def _spread(milliseconds: Sequence[float]) -> str:
    low, middle, high = (f"{value:.2f}" for value in (min(milliseconds), median(milliseconds), max(milliseconds)))
    return f"{middle} ms ({low} to {high})"


def _judged(text: str, value: float, goal: float) -> str:
    return f"{text}  {'PASS' if value <= goal else 'SHORT'} (goal {goal:g})"
