"""Prompts to masks: what `dist-moe analyze` and launch/analyze.py run, in order.

Two passes, each in parts that are kept on disk, so that an analysis needs the memory of a part, can be killed and goes
on, and can be shared out over ranks and jobs: count the routing of all prompts; then, from the counts and what they
say of all batches together, write each batch's rates, mask and statistics.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, replace
from hashlib import sha256
from typing import Any, Literal

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedModel

from dist_moe.config.load import save_config
from dist_moe.config.schema import Config
from dist_moe.data.index import BatchIndex
from dist_moe.data.tokens import CountedTokens
from dist_moe.errors import UserError
from dist_moe.files import writing
from dist_moe.measure.collect import count_rows
from dist_moe.measure.parts import CountedParts, share_of
from dist_moe.model.generate import Sampling
from dist_moe.model.model import load_model
from dist_moe.moe.discover import find_moe_layers, moe_shape
from dist_moe.moe.internals import must_be_alone
from dist_moe.moe.load import empty_model
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.shared_files import remove_partial
from dist_moe.report.analysis import report
from dist_moe.rules.rule import require_experts
from dist_moe.select.statistics import batch_results, selection_rule, statistic_kinds
from dist_moe.store import MaskStore, StorePlan, StoreWriter
from dist_moe.store.arrays import attributes
from dist_moe.workflows.inputs import Inputs, read_inputs
from dist_moe.workflows.results import is_finished, publish_results
from dist_moe.workflows.run_dir import RunDir, require_absent
from dist_moe.workflows.run_lock import RunLock, run_lock

log = logging.getLogger(__name__)


def analyze(config: Config, comm: Comm) -> None:
    """Count routing for every batch, choose each batch's unsafe experts, and write the mask store.

    Every rank takes a part of the rows, and then of the batches.
    """
    run = RunDir(config.run_dir)
    with run_lock(run.path, comm, shared=config.analysis.part is not None) as lock:
        if is_finished("analyze", config, lock, comm, (run.analysis,)):
            if lock is not None:
                shutil.rmtree(run.analysis, ignore_errors=True)
            log.info(f"Masks: {run.masks}; an earlier start had only to put them there")
        else:
            _analyze(config, comm, lock)


def _analyze(config: Config, comm: Comm, lock: RunLock | None) -> None:
    run = RunDir(config.run_dir)
    mesh = Mesh.of(comm, config.analysis.ep_size, "analysis.ep_size")
    with together(comm) as same:
        require_absent(run.masks, config.overwrite)
        share_of(config.analysis.part, 0)
        selection_rule(config.analysis)  # its error comes before the model runs
        inputs = read_inputs(config)
        same |= inputs.facts
        outline = empty_model(config.model.path)
        tokens = _tokens(config, inputs)
        passes = _passes(config, outline, tokens)
        plan = _store_plan(config, inputs, passes, outline)
        parts = CountedParts(run.analysis, _count_facts(config, inputs, passes), inputs.batches, inputs.rows)
    _count(config, inputs, parts, tokens, mesh)
    missing = comm.gather(parts.missing(range(len(parts.parts))) if comm.rank == 0 else None)[0]
    if missing:
        log.info(
            f"Counted: {len(missing)} of {len(parts.parts)} parts are left to other jobs; run again when they are done"
        )
        return
    _write(config, parts, plan, comm, lock)


def _count(config: Config, inputs: Inputs, parts: CountedParts, tokens: CountedTokens | Sampling, mesh: Mesh) -> None:
    """Count those parts of this job's share that nobody has counted; without any the weights are not read."""
    comm, share = mesh.world, share_of(config.analysis.part, len(parts.parts))
    missing = comm.gather(parts.missing(share) if comm.rank == 0 else None)[0]
    if not missing:
        return
    with together(comm):
        model = load_model(replace(config.model, dtype=_dtype(config)), mesh.ep)
    for line in model.describe():
        log.info(line)
    for part in tqdm(missing, desc="Routing", unit="part", disable=not log.isEnabledFor(logging.INFO)):
        counts = count_rows(
            model,
            parts.rows(part),
            tokens=tokens,
            micro_batch_tokens=config.analysis.micro_batch_tokens,
            pad_id=inputs.pad_id,
            comm=comm,
            gates=config.analysis.gates,
            gradients="gradients" in selection_rule(config.analysis).needs,
        )
        with together(comm), writing(parts.directory):
            if comm.rank == 0:
                parts.keep(part, counts)


def _write(config: Config, parts: CountedParts, plan: StorePlan, comm: Comm, lock: RunLock | None) -> None:
    """Write this job's share of the store; if nothing is left to others, publish it and tell what is in it."""
    run = RunDir(config.run_dir)
    settings, rule = config.analysis.statistics, selection_rule(config.analysis)
    name = sha256(json.dumps(attributes(plan), sort_keys=True).encode()).hexdigest()
    unfinished = run.analysis / f"{name[:32]}.zarr"
    with together(comm), writing(run.analysis):
        if parts.missing(range(len(parts.parts))):
            raise UserError(
                f"{run.analysis} does not hold what other ranks have counted: run_dir must be where all nodes see it"
            )
        writer = StoreWriter(unfinished, plan)
        share = share_of(config.analysis.part, writer.num_steps)
    missing = comm.gather([step for step in share if writer.is_missing(step)])[0]
    with together(comm), writing(run.analysis):
        for step in missing[comm.rank :: comm.size]:
            batches = writer.batches(step)
            results = batch_results(
                parts.counts(batches),
                parts.index.of(batches),
                rule,
                settings,
                config.seed,
                parts.population,
                show_progress=log.isEnabledFor(logging.INFO),
            )
            writer.write(batches, results)
    with together(comm), writing(run.path):
        if lock is not None:
            _publish_if_whole(config, writer, parts.index, lock)


def _publish_if_whole(config: Config, writer: StoreWriter, index: BatchIndex, lock: RunLock) -> None:
    """Of jobs that share an analysis the last one publishes it; while it does none is at work there."""
    run = RunDir(config.run_dir)
    if not writer.missing and not lock.alone():
        log.info("Written: all masks; another job that shares the analysis puts them in their place when it ends")
    elif not writer.path.exists():
        log.info(f"Masks: {run.masks}, put there by another job that shares the analysis")
    elif writer.missing:
        left = sum(map(len, writer.missing))
        log.info(f"Written: masks of {left} of {len(writer.plan.batch_ids)} batches are left to other jobs")
    else:
        _publish(config, writer, index)


def _publish(config: Config, writer: StoreWriter, index: BatchIndex) -> None:
    run = RunDir(config.run_dir)
    remove_partial(writer.path, "*", within=True)  # killed attempts, not only of this job
    writer.seal()
    store = MaskStore.open(writer.path)
    for line in store.warnings:  # before a refusal, of which they may be the reason
        log.info(line)
    sizes_B = np.array([batch.num_unsafe_experts for batch in store.batches])
    slabs = store.risk_diff.slabs(0, len(sizes_B))
    require_experts(
        sizes_B, max(store.risk_diff[start:stop].max() for start, stop in slabs), selection_rule(config.analysis)
    )
    whole = RunDir(run.analysis / "whole")
    shutil.rmtree(whole.path, ignore_errors=True)
    whole.path.mkdir()
    save_config(config, whole.resolved("analyze"))
    writer.path.rename(whole.masks)
    publish_results("analyze", whole.path, run.path)
    shutil.rmtree(run.analysis, ignore_errors=True)
    for line in report(MaskStore.open(run.masks), index, config.analysis.statistics, config.seed):
        log.info(line)
    log.info(f"Masks: {run.masks}")


def _store_plan(config: Config, inputs: Inputs, passes: dict[str, Any], outline: PreTrainedModel) -> StorePlan:
    """What the store will hold, before anything is counted."""
    index, shape = inputs.batches, moe_shape(outline, find_moe_layers(outline))
    rule = selection_rule(config.analysis)
    tables: dict[str, tuple[str, int]] = {"gates": ("float32", 3)} if config.analysis.gates else {}
    if config.analysis.tokens == "generated":
        tables |= {"prefill_counts": ("int32", 3), "prefill_tokens": ("int32", 1)}
    if "gradients" in rule.needs:
        tables["gradients"] = ("float32", 3)
    return StorePlan(
        prompt_ids=index.prompt_ids,
        unsafe_P=index.unsafe_P,
        batch_of_P=index.batch_of_P,
        batch_ids=index.ids,
        categories=index.categories,
        num_experts=shape.num_experts,
        experts_per_token=shape.top_k,
        selection_rule=rule.facts,
        counted_tokens=config.analysis.tokens,
        layer_names=shape.layer_names,
        provenance=_provenance(config, inputs, passes),
        statistics=statistic_kinds(rule, config.analysis.statistics),
        tables=tables,
        kinship=index.kinship,
        template_P=_template_tokens(inputs) if config.analysis.tokens in ("prompt", "all") else None,
    )


def _template_tokens(inputs: Inputs) -> np.ndarray:
    """int64 [P]: how many tokens of each prompt have no character of its messages."""
    rows = inputs.rows(range(len(inputs.batches)))
    return np.array([len(row.prompt_ids) - row.num_content for row in rows])


def _tokens(config: Config, inputs: Inputs) -> CountedTokens | Sampling:
    analysis = config.analysis
    if analysis.tokens != "generated":
        return analysis.tokens
    return Sampling(
        max_new_tokens=analysis.max_new_tokens,
        temperature=analysis.temperature,
        seed=config.seed,
        eos_ids=inputs.end_ids,
    )


def _dtype(config: Config) -> Literal["auto", "float32", "bfloat16"]:
    return config.analysis.dtype or config.model.dtype


def _passes(config: Config, outline: PreTrainedModel, tokens: CountedTokens | Sampling) -> dict[str, Any]:
    """What forward passes are like: the same rows in others may round to other experts, or be answered otherwise."""
    dtype = _dtype(config)
    facts = {
        "dtype": str(outline.config.dtype).removeprefix("torch.") if dtype == "auto" else dtype,
        "micro_batch_tokens": config.analysis.micro_batch_tokens,
        "rows_alone": must_be_alone(outline),
    }
    return facts | (tokens.facts if isinstance(tokens, Sampling) else {})


def _count_facts(config: Config, inputs: Inputs, passes: dict[str, Any]) -> dict[str, Any]:
    """All that counts follow from, but the rows."""
    return {
        "model_hash": inputs.model_hash,
        **passes,
        "ep_size": config.analysis.ep_size,
        "tokens": config.analysis.tokens,
        "gates": config.analysis.gates,
        "gradients": "gradients" in selection_rule(config.analysis).needs,
    }


def _provenance(config: Config, inputs: Inputs, passes: dict[str, Any]) -> dict[str, Any]:
    analysis = config.analysis
    return {
        "model_hash": inputs.model_hash,
        "tokenizer_hash": inputs.tokenizer_hash,
        "data_hash": inputs.prompts.data_hash,
        "tokens_hash": inputs.tokens_hash,
        "model_path": str(config.model.path),
        "data_paths": [str(path) for path in config.data.paths],
        "seed": config.seed,
        "batch_size": config.batches.batch_size,
        "safe_ratio": config.batches.safe_ratio,
        "statistics": asdict(analysis.statistics),
        **passes,
    }
