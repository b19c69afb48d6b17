"""A mask store on disk: writing it, its size, and reading one batch's mask."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from dist_moe.risk.counts import RoutingCounts
from dist_moe.risk.select import SelectionRule, masks_from
from dist_moe.risk.table import risk_table
from dist_moe.store import MaskStore, StoreContents, write_store
from tools.bench.setup import BATCH_ROWS, Options
from tools.bench.timing import Fact


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
