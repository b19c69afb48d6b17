"""Prompts to masks: what `dist-moe analyze` and launch/analyze.py run, in order."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from tqdm import tqdm

from dist_moe.analysis.collect import count_rows
from dist_moe.analysis.generate import Sampling
from dist_moe.analysis.parts import CountedParts, share_of
from dist_moe.analysis.report import report
from dist_moe.analysis.statistics import batch_evidence, batch_statistics, pooled_evidence, selection_rule
from dist_moe.config.load import save_config
from dist_moe.config.schema import Config
from dist_moe.data.batches import micro_batches
from dist_moe.data.tokens import CountedTokens, Encoded
from dist_moe.files import writing
from dist_moe.moe.model import MoEModel, load_model
from dist_moe.parallel.comm import Comm, SoloComm
from dist_moe.parallel.launch import together
from dist_moe.risk.counts import RoutingCounts, concatenate
from dist_moe.risk.masks import ExpertMasks
from dist_moe.risk.names import batch_name
from dist_moe.risk.rules import require_experts, select_mask
from dist_moe.risk.table import risk_table
from dist_moe.store import MaskStore, StoreContents, write_store
from dist_moe.workflows.console import Say, console
from dist_moe.workflows.inputs import Inputs, read_inputs, stop_ids
from dist_moe.workflows.run_dir import RunDir, require_absent

ROWS_AT_ONCE = 512
"""Rows among which those of like length are found for one forward pass."""


def analyze(config: Config, comm: Comm) -> None:
    """Count routing for every batch, choose each batch's unsafe experts, and write the mask store.

    Every rank holds the whole model and takes a part of the rows; counts are summed over ranks. Until the masks are
    written counts are kept in the run directory: an analysis that was killed, or shared out over jobs, goes on.
    """
    say, run = console(comm), RunDir(config.run_dir)
    with together(comm):
        require_absent(run.masks, config.overwrite)
        share_of(config.analysis.part, 0)
        selection_rule(config.analysis)  # its error comes before the model runs
        inputs = read_inputs(config, say)
        model = load_model(config.model, SoloComm(comm.device))
    rows = [row for i in range(len(inputs.plan.batches)) for row in inputs.rows(i)]
    parts = micro_batches(rows, ROWS_AT_ONCE)
    share = share_of(config.analysis.part, len(parts))
    counts = [
        _count(config, inputs, model, parts[i], comm)
        for i in tqdm(share, desc="Routing", unit="part", disable=comm.rank != 0)
    ]
    if config.analysis.part is not None:
        say(f"Counted {len(share)} of {len(parts)} parts, in {run.counts}; when all are: run without analysis.part")
        return
    with together(comm):
        if comm.rank == 0:
            _write(config, inputs, model, concatenate(counts), say)
            shutil.rmtree(run.counts, ignore_errors=True)


def _count(config: Config, inputs: Inputs, model: MoEModel, rows: Sequence[Encoded], comm: Comm) -> RoutingCounts:
    """Counts of one part, the same on all ranks: those that are kept, or new ones, which are then kept."""
    tokens, gates = _tokens(config, inputs, model), config.analysis.rule == "esft_gate"
    gradients = config.analysis.rule == "gradient"
    facts = {
        "model_hash": inputs.model_hash,
        "dtype": config.model.dtype,
        "tokens": asdict(tokens) if isinstance(tokens, Sampling) else tokens,
        "micro_batch_tokens": config.analysis.micro_batch_tokens,
        "gates": gates,
        "gradients": gradients,
    }
    kept = CountedParts(RunDir(config.run_dir).counts, facts)
    found = comm.gather(kept.find(rows) if comm.rank == 0 else None)[0]
    if found is not None:
        return found
    counts = count_rows(
        model,
        rows,
        tokens=tokens,
        micro_batch_tokens=config.analysis.micro_batch_tokens,
        pad_id=inputs.pad_id,
        comm=comm,
        gates=gates,
        gradients=gradients,
    )
    with together(comm), writing(kept.directory):
        if comm.rank == 0:
            kept.keep(rows, counts)
    return counts


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


def _write(config: Config, inputs: Inputs, model: MoEModel, counts: RoutingCounts, say: Say) -> None:
    """Masks, statistics, the store and the report: all follow from the counts, and one rank computes them."""
    run = RunDir(config.run_dir)
    plan = inputs.plan
    prompts = [inputs.prompts.prompts[row] for batch in plan.batches for row in batch.rows]
    batch_of_P = np.repeat(np.arange(len(plan.batches)), [len(batch.rows) for batch in plan.batches])
    unsafe_P = np.array([prompt.unsafe for prompt in prompts])
    names = [batch_name(i, batch.category, batch.id) for i, batch in enumerate(plan.batches)]
    risk = risk_table(counts, unsafe_P, batch_of_P, len(plan.batches), names)
    settings, rule = config.analysis.statistics, selection_rule(config.analysis)
    pairs = [prompt.pair_id for prompt in prompts]
    batches = batch_evidence(counts, unsafe_P, batch_of_P, pairs, settings, config.seed)
    masks = ExpertMasks(np.array([select_mask(batch, rule) for batch in batches]))
    require_experts(masks.num_experts_B, risk.risk_diff_BLE.max(), rule)
    statistics, pooled = {}, None
    if settings.permutations:
        statistics = batch_statistics(batches, rule, show_progress=True)
        pooled = pooled_evidence(counts, unsafe_P, batch_of_P, batches)
    contents = StoreContents(
        counts=counts,
        prompt_ids=tuple(prompt.id for prompt in prompts),
        unsafe_P=unsafe_P,
        batch_of_P=batch_of_P,
        batch_ids=tuple(batch.id for batch in plan.batches),
        categories=tuple(batch.category for batch in plan.batches),
        risk=risk,
        masks=masks,
        rule=rule,
        counted_tokens=config.analysis.tokens,
        layer_names=model.shape.layer_names,
        provenance=_provenance(config, inputs),
        statistics=statistics,
    )
    run.path.mkdir(parents=True, exist_ok=True)
    write_store(run.masks, contents, overwrite=config.overwrite)
    save_config(config, run.resolved("analyze"))
    for line in report(MaskStore.open(run.masks), pooled, config.seed):
        say(line)
    say(f"Masks: {run.masks}")


def _provenance(config: Config, inputs: Inputs) -> dict[str, Any]:
    return {
        "model_hash": inputs.model_hash,
        "tokenizer_hash": inputs.tokenizer_hash,
        "data_hash": inputs.prompts.data_hash,
        "model_path": str(config.model.path),
        "data_paths": [str(path) for path in config.data.paths],
        "seed": config.seed,
        **_generation_facts(config),
        "batch_size": config.batches.batch_size,
        "safe_ratio": config.batches.safe_ratio,
    }


def _generation_facts(config: Config) -> dict[str, int | float]:
    if config.analysis.tokens != "generated":
        return {}
    return {"max_new_tokens": config.analysis.max_new_tokens, "temperature": config.analysis.temperature}
