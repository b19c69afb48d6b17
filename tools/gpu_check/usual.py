"""The usual way at the shape of OLMoE: transformers' grouped_mm, whole expert tensors, torch's AdamW over them."""

from __future__ import annotations

import time

import torch

from dist_moe.training.loss import token_losses
from tools.gpu_check import large
from tools.gpu_check.here import Here, guarded, report


def run(here: Here) -> None:
    for name, rows in (("AdamW", 16), ("AdamW", 4), ("SGD", 4)):
        with guarded("usual", f"{name}, {rows} rows at once") as attempt:
            _run(here, name, rows)
        if not attempt.failed:
            return
        torch.cuda.empty_cache()


def _run(here: Here, name: str, rows: int) -> None:
    rate, config = here.matmul_rate(), large.config_of("olmoe", here)
    module = large.build(config, here)
    module.set_experts_implementation("grouped_mm")
    trained = [p.requires_grad_() for key, p in module.named_parameters() if ".experts." in key]
    fused = {"fused": True} if name == "AdamW" else {}
    optimizer = getattr(torch.optim, name)(trained, lr=1e-6, weight_decay=0.0, **fused)
    batches = [batch.to(here.device) for batch in large.batches(config, here, rows)]
    labelled = sum(len(batch.predicting) for batch in batches)

    def one() -> None:
        for batch in batches:
            inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
            (token_losses(module(**inputs).logits, batch.labels)[0].sum() / labelled).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    one()
    here.sync()
    if here.cuda:
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    stop = time.monotonic() + (0 if here.dry else min(8, here.left / 3))
    while len(times) < 3 or (time.monotonic() < stop and len(times) < 15):
        started = time.perf_counter()
        one()
        here.sync()
        times.append(time.perf_counter() - started)
    seconds, tokens = sorted(times)[len(times) // 2], sum(batch.num_live for batch in batches)
    positions = sum(batch.input_ids.numel() for batch in batches)
    pairs = float(positions * config.num_experts_per_tok * config.num_hidden_layers)
    needed = large.flops(config, positions, labelled, pairs, pairs, 0)
    report(
        "usual",
        "step",
        optimizer=name,
        rows_at_once=rows,
        seconds=seconds,
        tokens_per_s=tokens / seconds,
        teraflop=needed / 1e12,
        of_matmul_rate=needed / seconds / rate,
        peak_gib=torch.cuda.max_memory_allocated() / 2**30 if here.cuda else None,
    )
