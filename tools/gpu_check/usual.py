"""The usual way at the shape of OLMoE: transformers' grouped_mm, whole expert tensors, torch's AdamW over them."""

from __future__ import annotations

import gc
import time

import torch

from dist_moe.training.loss import token_losses
from tools.gpu_check import large
from tools.gpu_check.here import Here, guarded, report
from tools.gpu_check.ours import Ours


def run(here: Here) -> None:
    for shape, layers, sizes in (("olmoe", None, (16, 4)), ("qwen3", 12, (2, 1))):
        for rows in sizes:
            with guarded("usual", f"{shape}, {rows} rows at once") as attempt:
                _run(here, shape, layers, rows)
            gc.collect()
            torch.cuda.empty_cache()
            if not attempt.failed:
                break
    with guarded("usual", "ours"):
        ours = Ours(here, "usual", "qwen3", 12, 2)
        ours.run("update")


def _run(here: Here, shape: str, layers: int | None, rows: int) -> None:
    rate, config = here.matmul_rate(), large.config_of(shape, here, layers)
    module = large.build(config, here)
    module.set_experts_implementation("grouped_mm")
    trained = [p.requires_grad_() for key, p in module.named_parameters() if ".experts." in key]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, weight_decay=0.0, fused=True)
    batches = [batch.to(here.device) for batch in large.batches(shape, config, here, rows)]
    labelled = sum(len(batch.predicting) for batch in batches)

    def one() -> None:
        for batch in batches:
            (token_losses(module(batch.input_ids, use_cache=False).logits, batch.labels).sum() / labelled).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    one()
    here.sync()
    if here.cuda:
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    stop = time.monotonic() + (0 if here.dry else min(3, here.left / 6))
    while len(times) < 3 or (time.monotonic() < stop and len(times) < 8):
        started = time.perf_counter()
        one()
        here.sync()
        times.append(time.perf_counter() - started)
    seconds, tokens = sorted(times)[len(times) // 2], sum(batch.num_live for batch in batches)
    positions = sum(batch.input_ids.numel() for batch in batches)
    pairs = float(positions * config.num_experts_per_tok * config.num_hidden_layers)
    needed = large.flops(config, batches, labelled, pairs, pairs, 0)
    report(
        "usual",
        "step of transformers",
        shape=shape,
        layers=config.num_hidden_layers,
        rows_at_once=rows,
        seconds=seconds,
        tokens_per_s=tokens / seconds,
        teraflop=needed / 1e12,
        of_matmul_rate=needed / seconds / rate,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if here.cuda else None,
    )
