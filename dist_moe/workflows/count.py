"""`dist-moe count` and launch/count.py: count the routing of all prompts; also the first half of `dist-moe analyze`.

Rows are counted in parts that are kept on disk. So counting needs the memory of one part, can be resumed after a kill,
and can be split over ranks and jobs. In the end the parts become one store.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedModel

from dist_moe.config.load import save_config
from dist_moe.config.schema import Config
from dist_moe.data.tokens import CountedTokens
from dist_moe.errors import UserError
from dist_moe.files import writing
from dist_moe.hub.names import origin_facts
from dist_moe.measure.collect import count_rows
from dist_moe.measure.parts import CountedParts, share_of
from dist_moe.model.generate import Sampling
from dist_moe.model.model import MoEModel, load_model
from dist_moe.moe.discover import find_moe_layers, moe_shape
from dist_moe.moe.internals import must_be_alone
from dist_moe.moe.load import empty_model
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.shared_files import remove_partial
from dist_moe.progress import progress
from dist_moe.report.model import forward_passes
from dist_moe.rules import RULES
from dist_moe.selection.statistics import require_all_experts
from dist_moe.stats.counts import RoutingCounts
from dist_moe.store import Counts, CountsPlan, StoreWriter
from dist_moe.store.plan import StorePlan
from dist_moe.workflows.inputs import Inputs, keep_inputs, read_inputs
from dist_moe.workflows.model_place import from_hub
from dist_moe.workflows.passes import require_passes
from dist_moe.workflows.rank_log import RankLog
from dist_moe.workflows.results import is_finished, publish_results
from dist_moe.workflows.run_dir import RunDir, require_absent
from dist_moe.workflows.run_lock import RunLock, run_lock

log = logging.getLogger(__name__)


def count(config: Config, comm: Comm) -> None:
    """Count the routing of every prompt, and write the counts store. Every rank counts a part of the rows."""
    config = from_hub(config, comm)
    count_by(config, comm, lambda: counted(config, begin(config, comm), comm))


def count_by(config: Config, comm: Comm, work: Callable[[], Path | None]) -> None:
    """Publish the counts store that `work` makes on all ranks together, in the run directory.

    `work` gives its place in `analysis/`, or None if other jobs have to finish it.
    """
    comm.heartbeat.limit_s = config.parallel.timeout
    run = RunDir(config.run_dir)
    with run_lock(run.path, comm, shared=config.analysis.part is not None) as lock:
        if is_finished("count", config, lock, comm, (run.analysis,)):
            log.info(f"Counts: {run.counts} (they were complete; only the move to this place was left)")
            return
        with together(comm):
            require_absent(run.counts, config.overwrite)
        unfinished = work()
        if unfinished is None:
            return
        with together(comm), writing(run.path):
            if lock is not None:
                _publish(config, unfinished, lock)


@dataclass(frozen=True, slots=True)
class Counting:
    """What is to be counted, and which parts are counted already."""

    inputs: Inputs
    tokens: CountedTokens | Sampling
    plan: CountsPlan
    parts: CountedParts


def begin(config: Config, comm: Comm) -> Counting:
    """Read everything but the model's weights. Called by all ranks together.

    Raises:
        UserError: on all ranks: something in the configuration, the data or the model directory is wrong.
    """
    with together(comm):
        share_of(config.analysis.part, 0)
        require_all_experts(config.analysis)
        require_passes(config, comm.device)
    inputs = read_inputs(config, comm)
    with together(comm):
        outline = empty_model(config.model.path, attention=config.model.attention)
        tokens = counted_tokens(config, inputs)
        passes = _passes(config, outline, tokens)
        directory = RunDir(config.run_dir).analysis
        parts = CountedParts(directory, _count_facts(config, inputs, passes), inputs.batches, inputs.rows)
        plan = counts_plan(config, inputs, passes, outline)
    return Counting(inputs, tokens, plan, parts)


def counted(config: Config, counting: Counting, comm: Comm) -> Path | None:
    """Path of the complete counts store in `analysis/`; None: other jobs still have parts to count."""
    parts, run = counting.parts, RunDir(config.run_dir)
    place = unfinished_store(run, counting.plan)
    if comm.gather((place / "zarr.json").exists())[0]:
        return place
    _count(config, counting, Mesh.of(comm, config.analysis.ep_size, "analysis.ep_size"))
    missing = comm.gather(parts.missing(range(len(parts.parts))) if comm.rank == 0 else None)[0]
    if missing:
        log.info(
            f"{len(missing)} of {len(parts.parts)} parts are left to other jobs; run the command again when these have "
            "counted them"
        )
        return None
    with together(comm), writing(run.analysis):
        if parts.missing(range(len(parts.parts))):
            raise UserError(
                f"{run.analysis} does not hold what other ranks have counted: run_dir must be where all nodes see it"
            )
    return stored(run, counting.plan, parts.counts, comm)


def stored(run: RunDir, plan: CountsPlan, counts_of: Callable[[range], RoutingCounts], comm: Comm) -> Path:
    """Write the counts of all batches, or of those that a killed job has left, and return the place of the store.

    Ranks take blocks of batches in turn, of which `counts_of` gives the counts.
    """
    place = unfinished_store(run, plan)
    with together(comm), writing(run.analysis):
        writer = StoreWriter(place, plan)
    steps = comm.gather([step for step in range(writer.num_steps) if writer.is_missing(step)])[0]
    with together(comm), writing(run.analysis):
        for step in steps[comm.rank :: comm.size]:
            batches = writer.batches(step)
            writer.write(batches, counts_of(batches))
    with together(comm), writing(run.analysis):
        if comm.rank == 0:
            writer.seal()
    return place


def _needs_gradients(config: Config) -> bool:
    return "gradients" in RULES.find(config.analysis.rule).needs


def unfinished_store(run: RunDir, plan: StorePlan[Any]) -> Path:
    """Where a store with this plan is written until it is complete."""
    name = sha256(json.dumps(plan.attributes, sort_keys=True).encode()).hexdigest()
    return run.analysis / f"{name[:32]}.zarr"


def _count(config: Config, counting: Counting, mesh: Mesh) -> None:
    """Count the parts of this job's share that are not counted yet. If there are none, no weights are read."""
    parts, comm = counting.parts, mesh.world
    share = share_of(config.analysis.part, len(parts.parts))
    missing = comm.gather(parts.missing(share) if comm.rank == 0 else None)[0]
    if not missing:
        return
    job = "" if config.analysis.part is None else f"part-{config.analysis.part.replace('/', '-of-')}-"
    with RankLog(config.run_dir, comm, "count", "parts", job=job) as told:
        with together(comm):
            model = load_model(replace(config.model, dtype=_dtype(config)), mesh.ep, packed=config.data.packing)
        for line in forward_passes(model):
            log.info(line)
        started = time.time()
        with progress("Routing", len(missing), "parts") as advance:
            for part in missing:
                _count_part(config, counting, part, model, comm)
                if part == missing[0]:  # what is refused before leaves nothing
                    told.begin(0, len(missing), since=started)
                    keep_inputs(counting.inputs, config, comm)
                advance(1)
                told.advance(1)


def _count_part(config: Config, counting: Counting, part: int, model: MoEModel, comm: Comm) -> None:
    """Count the rows of one part on all ranks together, and keep it."""
    parts = counting.parts
    counts = count_rows(
        model,
        parts.rows(part),
        tokens=counting.tokens,
        micro_batch_tokens=config.analysis.micro_batch_tokens,
        pad_id=counting.inputs.pad_id,
        comm=comm,
        gates=config.analysis.gates,
        gradients=_needs_gradients(config),
    )
    with together(comm), writing(parts.directory):
        if comm.rank == 0:
            parts.keep(part, counts)


def _publish(config: Config, unfinished: Path, lock: RunLock) -> None:
    """The last of the jobs that share the counting publishes the store; no other job is running there meanwhile."""
    run = RunDir(config.run_dir)
    if not lock.alone():
        log.info("All parts are counted; another job of this analysis finishes the store when it ends")
        return
    if not unfinished.exists():
        log.info(f"Counts: {run.counts}, finished by another job of this analysis")
        return
    remove_partial(run.path, run.rows.name)
    remove_partial(unfinished, "*", within=True)  # killed attempts, not only of this job
    for line in Counts.open(unfinished).warnings:
        log.info(line)
    whole = RunDir(run.analysis / "whole")
    shutil.rmtree(whole.path, ignore_errors=True)
    whole.path.mkdir()
    save_config(config, whole.resolved("count"))
    unfinished.rename(whole.counts)
    publish_results("count", whole.path, run.path)
    shutil.rmtree(run.analysis, ignore_errors=True)
    log.info(f"Counts: {run.counts}")


def counts_plan(config: Config, inputs: Inputs, passes: dict[str, Any], outline: PreTrainedModel) -> CountsPlan:
    """What the store will contain, known before counting."""
    shape = moe_shape(outline, find_moe_layers(outline))
    tables: dict[str, tuple[str, int]] = {"gates": ("float32", 3)} if config.analysis.gates else {}
    if config.analysis.tokens == "generated":
        tables |= {"prefill_counts": ("int32", 3), "prefill_tokens": ("int32", 1)}
    if _needs_gradients(config):
        tables["gradients"] = ("float32", 3)
    return CountsPlan(
        index=inputs.batches,
        num_experts=shape.num_experts,
        experts_per_token=shape.top_k,
        counted_tokens=config.analysis.tokens,
        layer_names=shape.layer_names,
        provenance=_provenance(config, inputs, passes),
        tables=tables,
        template_P=_template_tokens(inputs) if config.analysis.tokens in ("prompt", "all") else None,
    )


def _template_tokens(inputs: Inputs) -> np.ndarray:
    """int64 [P]: number of tokens of each prompt that belong to the chat template alone."""
    rows = inputs.rows(range(len(inputs.batches)))
    return np.array([len(row.prompt_ids) - row.num_content for row in rows])


def counted_tokens(config: Config, inputs: Inputs) -> CountedTokens | Sampling:
    """Which tokens are counted, or how the answers are generated that are."""
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
    """Properties of the forward passes on which rounding, and so routing and answers, can depend."""
    dtype = _dtype(config)
    facts = {
        "dtype": str(outline.config.dtype).removeprefix("torch.") if dtype == "auto" else dtype,
        "micro_batch_tokens": config.analysis.micro_batch_tokens,
        "rows_alone": must_be_alone(outline),
    }
    if config.model.attention != "auto":
        facts["attention"] = config.model.attention
    if isinstance(tokens, Sampling):
        return facts | tokens.facts
    return facts | ({"packed": True} if config.data.packing else {})


def _count_facts(config: Config, inputs: Inputs, passes: dict[str, Any]) -> dict[str, Any]:
    """Everything that counts depend on, except the rows."""
    return {
        "model_hash": inputs.model_hash,
        **passes,
        "ep_size": config.analysis.ep_size,
        "tokens": config.analysis.tokens,
        "gates": config.analysis.gates,
        "gradients": _needs_gradients(config),
    }


def _provenance(config: Config, inputs: Inputs, passes: dict[str, Any]) -> dict[str, Any]:
    return {
        "model_hash": inputs.model_hash,
        "tokenizer_hash": inputs.tokenizer_hash,
        "data_hash": inputs.prompts.data_hash,
        "tokens_hash": inputs.tokens_hash,
        "model_path": str(config.model.path),
        **origin_facts(config.model.path),
        "data_paths": [str(path) for path in config.data.paths],
        "seed": config.seed,
        "batch_size": config.batches.batch_size,
        "safe_ratio": config.batches.safe_ratio,
        **passes,
    }
