"""A plan in words, for a person who has a cluster's queue and has never spread experts over GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from dist_moe.planning.fit import FREE, GB, Counting, Fit
from dist_moe.planning.memory import state_bytes
from dist_moe.planning.plan import Plan
from dist_moe.report.columns import columns


def plan_lines(plan: Plan) -> Iterator[str]:
    """All of it."""
    for part in (_what, _memory, _fits, _layouts, _exchanges, _time, _disk, _commands):
        yield from part(plan)


def plan_json(plan: Plan) -> str:
    """One JSON object: the fields of `Plan`, and the commands."""
    return json.dumps(asdict(plan) | {"commands": [*plan.commands()]}, indent=1)


def compared_line(predicted: list[int], measured: list[int | None], of: str) -> str:
    """In training: bytes of all ranks, by the plan and as measured."""
    seen = [size for size in measured if size is not None]
    what = f"measured in the {of}: {gigabytes(max(seen))} GB" if seen else "not measured, as the weights are sharded"
    return f"Memory of the rank with most, by the plan: {gigabytes(max(predicted))} GB; {what} (plan.json)"


def _what(plan: Plan) -> Iterator[str]:
    job, outline, setup = plan.job, plan.outline, plan.setup
    yield f"Plan: train {job.model} on {_some(job.num_nodes, 'node')} of {_some(job.gpus_per_node, 'GPU')}"
    yield (
        f"Model: {_parameters(outline.num_parameters)} parameters in {outline.dtype}, "
        f"{gigabytes(outline.total_bytes)} GB; {outline.num_layers} MoE layers of {outline.num_experts} experts, "
        f"{outline.top_k} for a token"
    )
    if job.unpacked_from is not None:
        yield f"It is published in {job.unpacked_from}, which cannot be trained: make a copy in {outline.dtype} first"
    num, every = plan.trained.in_all, outline.num_layers * outline.num_experts
    source = "assumed: --union, --batch-experts" if job.is_assumed else "of the run's masks"
    yield (
        f"Trained: {num:,} of {every:,} experts ({100 * num / every:.1f} %), at most {plan.trained.in_batch:,} by one "
        f"batch ({source})"
    )
    yield (
        f"Batches of {setup.batch_size} rows; the longest row has {setup.row_tokens:,} tokens, of which "
        f"{setup.answer_tokens:,} are trained (assumed: --row-tokens, --answer-tokens)"
    )


def _memory(plan: Plan) -> Iterator[str]:
    memory, setup = plan.memory, plan.setup
    dense = f"1/{setup.num_ranks} of the dense weights" if setup.shards_dense else "all dense weights"
    each = state_bytes(plan.outline, setup)
    place = "in the host's memory" if setup.offloads else f"of {_some(plan.owned, 'expert')}: {each} bytes a parameter"
    again = ", computed again in the backward pass" if setup.checkpointing else ""
    lines = [
        ("weights", memory.weights, f"{_some(plan.held, 'expert')} and {dense}"),
        ("gradients", memory.gradients, f"of {_some(plan.active, 'expert')} of a batch: 4 bytes a parameter"),
        ("optimizer state", memory.state, place),
        ("base model", memory.originals, "trained experts as they were, for the objective"),
        ("gathered", memory.gathered, "dense weights of other ranks while they are used"),
        ("activations", memory.activations, f"{_some(setup.at_once, 'row')} of {setup.row_tokens:,} tokens{again}"),
        ("in all", memory.total, ""),
    ]
    yield ""
    yield f"One GPU, as the run is set, the one with most of {setup.num_ranks}:"
    yield columns(("", "GB", ""), [(name, gigabytes(size), why) for name, size, why in lines if size], indent="  ")
    if setup.num_ranks == 1:
        return
    yield (
        f"  parallel.ep_size is {setup.ep_size}: {_some(setup.ep_size, 'GPU')} hold one copy of all experts; there are "
        f"{setup.num_replicas} copies"
        if setup.ep_size < setup.num_ranks
        else f"  parallel.ep_size is {setup.ep_size}: all GPUs together hold one copy of the experts"
    )


def _fits(plan: Plan) -> Iterator[str]:
    yield ""
    yield f"Which GPUs have room, if {100 * FREE:.0f} % of a GPU is left free:"
    lines = [(f"{each.gpu} GB", *_fit(each), _counting(plan.counting[each.gpu])) for each in plan.fits]
    yield columns(("GPU", "needs", "train", "analyze"), lines, indent="  ")
    small = [each for each in plan.fits if not each.fits]
    if small:
        words = " ".join(change.words for change in small[0].changes) or "the settings as they are"
        yield f"  At least {gigabytes(small[0].needs)} GB, with {words}; more GPUs share more"


def _fit(fit: Fit) -> tuple[str, str]:
    words = " ".join(change.words for change in fit.changes)
    return gigabytes(fit.needs), (words or "as it is set") if fit.fits else "does not fit"


def _counting(found: Counting | None) -> str:
    return "does not fit" if found is None else found.words or "as it is set"


def _layouts(plan: Plan) -> Iterator[str]:
    if plan.rejected and plan.setup.num_ranks > 1:
        yield ""
        yield f"Not possible on {plan.job.gpu or plan.fits[-1].gpu} GB with the other settings as they are:"
        yield from (f"  --parallel.ep_size {each.ep_size}: {each.reason}" for each in plan.rejected)


def _exchanges(plan: Plan) -> Iterator[str]:
    sent, setup, job = plan.traffic, plan.setup, plan.job
    if setup.num_ranks == 1:
        return
    yield ""
    parts = f"{gigabytes(sent.experts)} of gradients and new weights, {gigabytes(sent.dense)} of dense weights"
    yield (
        f"A GPU sends about {gigabytes(sent.total)} GB in a step: {gigabytes(sent.tokens)} of tokens to experts and "
        f"back, in {sent.exchanges:,} exchanges; {parts}"
    )
    if setup.ep_size > job.gpus_per_node:
        yield f"  parallel.ep_size is more than the {job.gpus_per_node} GPUs of a node, so tokens go between nodes"


def _time(plan: Plan) -> Iterator[str]:
    job = plan.job
    if job.tokens_per_second is None:
        yield "Time: give --tokens-per-second (of all GPUs together), or train some steps, whose rate is then read"
        return
    step = plan.setup.batch_size * plan.setup.row_tokens / job.tokens_per_second
    hours = "" if plan.seconds is None else f"; {_hours(plan.seconds)} for {job.num_batches:,} batches"
    turns = f", {job.epochs} times" if hours and job.epochs > 1 else ""
    rate = f"{job.tokens_per_second:,.0f} tokens/s ({job.rate_from})"
    yield f"Time: at most {step:,.1f} s a step{hours}{turns}, at {rate}"


def _disk(plan: Plan) -> Iterator[str]:
    size, kept = plan.disk, plan.job.kept_checkpoints
    at_once = gigabytes(size.checkpoint * (kept + 1))
    prompt, batch = (_shown(each / 1e6, 2) for each in (size.counts, size.masks))
    yield f"Disk, at most: analysis {prompt} MB a prompt and {batch} MB a batch"
    yield (
        f"  checkpoints {gigabytes(size.checkpoint)} GB each, {at_once} GB while {kept} are kept and one is written; "
        f"trained experts {gigabytes(size.experts)} GB; export {gigabytes(size.export)} GB"
    )


def _commands(plan: Plan) -> Iterator[str]:
    chosen = plan.chosen
    yield ""
    if chosen is None:
        yield "The run fits on none of these GPUs: take more of them, or train fewer experts"
        return
    yield f"On GPUs of {chosen.gpu} GB, under Slurm (`dist-moe slurm site` writes a site file):"
    yield from (f"  {line}" for line in plan.commands())


def gigabytes(size: float) -> str:
    """In 10^9 bytes."""
    return _shown(size / GB, 1)


def _shown(number: float, digits: int) -> str:
    """With so many digits behind the point, or of a small one its first: nothing that there is is shown as 0."""
    rounded = f"{number:,.{digits}f}"
    return f"{number:.1g}" if number and not rounded.strip("0.") else rounded


def _parameters(number: int) -> str:
    return f"{number / 1e9:,.1f} billion" if number >= 5e7 else f"{number / 1e6:,.1f} million"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} hours" if seconds >= 3600 else f"{seconds / 60:,.1f} minutes"


def _some(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")
