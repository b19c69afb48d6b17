"""Stores on disk: writing them, their size and files, and one batch's rates or mask in a fresh open."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dist_moe.data.index import BatchIndex
from dist_moe.rules.threshold_top_k import ThresholdTopK
from dist_moe.stats.counts import RoutingCounts
from dist_moe.stats.masks import ExpertMasks
from dist_moe.stats.table import risk_table
from dist_moe.store import Counts, CountsPlan, MaskPlan, MaskResults, MaskStore, StoreWriter
from dist_moe.store.plan import HASHES, StorePlan
from dist_moe.store.store import Store
from tools.bench.setup import BATCH_ROWS, Options
from tools.bench.timing import Count, Fact, Result

GOAL_BITS, GOAL_FILES, GOAL_MS, GOAL_COMPUTED_MS = 1.1, 999.0, 5.0, 15.0


def bench_store(options: Options) -> list[Result]:
    """Counts as an analysis writes them (16 prompts a batch, skewed), and a mask store with very many masks."""
    plan = CountsPlan(**_facts(*options.store_shape, rows=BATCH_ROWS))
    counts, sparse = _counts(plan), SparseMasks(*options.masks_shape)
    risk = risk_table(counts, plan.index.unsafe_P, plan.index.batch_of_P, len(plan.index), plan.index.ids)
    of_counts = partial(plan.cut, counts), risk.risk_diff_BLE.__getitem__
    num_rounds = options.launches * options.repetitions
    results = _measure("counts", plan, *of_counts, Counts, _rates, num_rounds)
    results += _measure("masks", sparse.plan, sparse.results, sparse.mask, MaskStore, _masks, num_rounds)
    return results


def _rates(store: Any, batch: int) -> np.ndarray:
    return store.risk_diff[batch]


def _masks(store: Any, batch: int) -> np.ndarray:
    return store.masks[batch]


def _measure(
    name: str,
    plan: StorePlan[Any],
    results: Callable[[range], Any],
    expected: Callable[[int], np.ndarray],
    kind: type[Store],
    row_of: Callable[[Any, int], np.ndarray],
    repetitions: int,
) -> list[Result]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "some.zarr"
        writing = 0.0
        writer = StoreWriter(path, plan)
        for batches in writer.missing:
            found = results(batches)
            begin = time.perf_counter()
            writer.write(batches, found)
            writing += time.perf_counter() - begin
        begin = time.perf_counter()
        writer.seal()
        writing += time.perf_counter() - begin
        opening, reading, again = [], [], []
        for batch in np.random.default_rng(1).integers(len(plan.index), size=repetitions).tolist():
            _forget_pages(path)
            begin = time.perf_counter()
            store = kind.open(path)
            opened = time.perf_counter()
            row_LE = row_of(store, batch)
            read = time.perf_counter()
            opening.append(1e3 * (opened - begin))
            reading.append(1e3 * (read - begin))
            assert (row_LE == expected(batch)).all(), "the store gave another row"
            begin = time.perf_counter()
            row_of(kind.open(path), batch)
            again.append(1e3 * (time.perf_counter() - begin))
        shape, goal_ms = plan.shape_BLE, GOAL_MS if kind is MaskStore else GOAL_COMPUTED_MS
        bits = 8 * _num_bytes(path / "masks") / np.prod(shape) if kind is MaskStore else 0.0
        written = f"{writing:.1f} s, {_num_bytes(path) / 2**20:.1f} MiB"
        num_files, size = len(_files(path)), f"{_num_bytes(path):,} bytes"
        warm = f"with the files in memory, opening and reading a row takes {median(again):.2f} ms"
        of_bits = [Count(f"{name}: bits a mask cell", bits, GOAL_BITS, size)] if bits else []
        return [
            Fact(f"{name} of {' x '.join(map(str, shape))}: write", written),
            *of_bits,
            Count(f"{name}: files", num_files, GOAL_FILES, size, str(num_files)),
            Count(f"{name}: open, cold", median(opening), GOAL_MS, warm, _spread(opening)),
            Count(
                f"{name}: open and one row, cold",
                median(reading),
                goal_ms,
                f"opening takes {median(opening):.2f} ms; {warm}",
                _spread(reading),
            ),
        ]


class SparseMasks:
    """Random masks of 50 experts, which compress worst."""

    def __init__(self, num_batches: int, num_layers: int, num_experts: int) -> None:
        facts = _facts(num_batches, num_layers, num_experts, rows=2)
        self.plan = MaskPlan(selection_rule=ThresholdTopK(threshold=0.05, top_k=50).facts, counts_digest="", **facts)

    def results(self, batches: range) -> MaskResults:
        masks = ExpertMasks(np.array([self.mask(batch) for batch in batches]))
        signs_B3 = np.zeros((len(batches), 3), np.int32)
        signs_B3[:, 0] = masks.num_experts_B
        return MaskResults(masks=masks, signs_B3=signs_B3)

    def mask(self, batch: int) -> np.ndarray:
        """bool [L, E]."""
        mask_X = np.zeros(self.plan.shape_BLE[1] * self.plan.shape_BLE[2], np.bool_)
        mask_X[np.random.default_rng(batch).choice(mask_X.size, 50, replace=False)] = True
        return mask_X.reshape(self.plan.shape_BLE[1:])


def _facts(num_batches: int, num_layers: int, num_experts: int, rows: int) -> dict[str, Any]:
    num_prompts = num_batches * rows
    index = BatchIndex(
        ids=tuple(f"{batch:016x}" for batch in range(num_batches)),
        categories=("category",) * num_batches,
        starts_B1=np.arange(num_batches + 1) * rows,
        prompt_ids=tuple(f"prompt-{prompt}" for prompt in range(num_prompts)),
        unsafe_P=np.arange(num_prompts) % 2 == 1,
        cluster_P=None,
        pair_P=None,
    )
    return {
        "index": index,
        "num_experts": num_experts,
        "experts_per_token": 8,
        "counted_tokens": "prompt",
        "layer_names": tuple(f"model.layers.{layer}.mlp.experts" for layer in range(num_layers)),
        "provenance": dict.fromkeys(HASHES, ""),
    }


def _counts(plan: CountsPlan) -> RoutingCounts:
    num_batches, num_layers, num_experts = plan.shape_BLE
    generator = np.random.default_rng(0)
    # Drawing is slow, so these repeat; counts compress no better for it, as no two batches share a chunk.
    num_drawn = min(num_batches, 40)
    popularity_ALE = generator.lognormal(sigma=1.0, size=(2, num_layers, num_experts))
    popularity_ALE[1] = 0.7 * popularity_ALE[0] + 0.3 * popularity_ALE[1]
    drawn_PLE = generator.poisson(popularity_ALE[plan.index.unsafe_P[: num_drawn * BATCH_ROWS].astype(int)])
    counts_PLE = np.resize(drawn_PLE, (plan.index.num_prompts, num_layers, num_experts))
    top_k = plan.experts_per_token
    tokens_P = np.maximum(counts_PLE.max((1, 2)), -(-counts_PLE.sum(2).max(1) // top_k))
    return RoutingCounts(counts_PLE, tokens_P, top_k)


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
