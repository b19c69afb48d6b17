"""Prompts to masks: what `dist-moe analyze` and launch/analyze.py run, in order."""

from __future__ import annotations

import numpy as np
import pandas as pd
from tqdm import tqdm

from dist_moe.analysis.collect import count_rows
from dist_moe.analysis.generate import Sampling
from dist_moe.config.load import save_config
from dist_moe.config.schema import Config
from dist_moe.data.batches import micro_batches
from dist_moe.data.tokens import CountedTokens
from dist_moe.moe.model import MoEModel, load_model
from dist_moe.parallel.comm import Comm, SoloComm
from dist_moe.parallel.launch import together
from dist_moe.risk.counts import RoutingCounts, concatenate
from dist_moe.risk.names import batch_name
from dist_moe.risk.select import SelectionRule, masks_from
from dist_moe.risk.table import risk_table
from dist_moe.store.read import MaskStore
from dist_moe.store.write import StoreContents, write_store
from dist_moe.workflows.console import Say, console
from dist_moe.workflows.inputs import Inputs, read_inputs, stop_ids
from dist_moe.workflows.run_dir import RunDir, require_absent

ROWS_AT_ONCE = 512
"""Rows among which those of like length are found for one forward pass."""


def analyze(config: Config, comm: Comm) -> None:
    """Count routing for every batch, choose each batch's unsafe experts, and write the mask store.

    Every rank holds the whole model and takes a part of each batch; counts are summed over ranks.
    """
    say, run = console(comm), RunDir(config.run_dir)
    with together(comm):
        require_absent(run.masks, config.overwrite)
        inputs = read_inputs(config, say)
        model = load_model(config.model, SoloComm(comm.device))
    counts = _count(config, inputs, model, comm)
    with together(comm):
        contents = _contents(config, inputs, model, counts)
        if comm.rank == 0:
            run.path.mkdir(parents=True, exist_ok=True)
            write_store(run.masks, contents, overwrite=config.overwrite)
            save_config(config, run.resolved("analyze"))
    if comm.rank == 0:
        report(MaskStore.open(run.masks), say)
        say(f"Masks: {run.masks}")


def _count(config: Config, inputs: Inputs, model: MoEModel, comm: Comm) -> RoutingCounts:
    rows = [row for i in range(len(inputs.plan.batches)) for row in inputs.rows(i)]
    parts = [
        count_rows(
            model,
            part,
            tokens=_tokens(config, inputs, model),
            micro_batch_tokens=config.analysis.micro_batch_tokens,
            pad_id=inputs.pad_id,
            comm=comm,
        )
        for part in tqdm(micro_batches(rows, ROWS_AT_ONCE), desc="Routing", unit="part", disable=comm.rank != 0)
    ]
    return concatenate(parts)


def _tokens(config: Config, inputs: Inputs, model: MoEModel) -> CountedTokens | Sampling:
    analysis = config.analysis
    if analysis.tokens != "generated":
        return analysis.tokens
    return Sampling(
        max_new_tokens=analysis.max_new_tokens,
        temperature=analysis.temperature,
        seed=config.seed,
        eos_ids=stop_ids(inputs, model),
    )


def _contents(config: Config, inputs: Inputs, model: MoEModel, counts: RoutingCounts) -> StoreContents:
    batches = inputs.plan.batches
    rows = [row for batch in batches for row in batch.rows]
    batch_of_P = np.repeat(np.arange(len(batches)), [len(batch.rows) for batch in batches])
    unsafe_P = np.array([inputs.prompts.prompts[row].unsafe for row in rows])
    names = [batch_name(i, batch.category, batch.id) for i, batch in enumerate(batches)]
    risk = risk_table(counts, unsafe_P, batch_of_P, len(batches), names)
    rule = SelectionRule(threshold=config.analysis.threshold, top_k=config.analysis.top_k)
    return StoreContents(
        counts=counts,
        prompt_ids=tuple(inputs.prompts.prompts[row].id for row in rows),
        unsafe_P=unsafe_P,
        batch_of_P=batch_of_P,
        batch_ids=tuple(batch.id for batch in batches),
        categories=tuple(batch.category for batch in batches),
        risk=risk,
        masks=masks_from(risk.risk_diff_BLE, rule),
        rule=rule,
        counted_tokens=config.analysis.tokens,
        layer_names=model.shape.layer_names,
        provenance={
            "model_hash": inputs.model_hash,
            "tokenizer_hash": inputs.tokenizer_hash,
            "data_hash": inputs.prompts.data_hash,
            "model_path": str(config.model.path),
            "data_paths": [str(path) for path in config.data.paths],
            "seed": config.seed,
            **_generation_facts(config),
            "batch_size": config.batches.batch_size,
            "safe_ratio": config.batches.safe_ratio,
        },
    )


def _generation_facts(config: Config) -> dict[str, int | float]:
    if config.analysis.tokens != "generated":
        return {}
    return {"max_new_tokens": config.analysis.max_new_tokens, "temperature": config.analysis.temperature}


def report(store: MaskStore, say: Say) -> None:
    """The analysis in figures: experts per batch, the global top 10, the top 5 of each category's first batch."""
    say("Per-batch unsafe experts count:")
    for batch in store.batches:
        say(f"  Batch {batch.index} ({batch.category}): {batch.num_unsafe_experts}")
    selected = len(store.global_unsafe_experts())
    say(f"Global unsafe experts (pooled over all prompts): {selected}; top 10 by risk_diff:")
    say(_table(store.aggregated, 10))
    first = {batch.category: batch for batch in reversed(store.batches)}
    for batch in sorted(first.values(), key=lambda batch: batch.index):
        say(f"Top 5 of {batch.name}:")
        say(_table(store.batch_table(batch.index), 5))


def _table(frame: pd.DataFrame, num_lines: int) -> str:
    columns = ["Layer_Expert", "risk_diff", "a_safe_n", "a_unsafe_n"]
    return frame.head(num_lines)[columns].to_string(index=False, float_format="{:.4f}".format)
