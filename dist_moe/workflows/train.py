"""Masks to repaired experts: what `dist-moe train` and launch/train.py run, in order, on one process or many."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict

import numpy as np
import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from dist_moe import __version__
from dist_moe.config.load import save_config
from dist_moe.config.schema import Config, TrainConfig
from dist_moe.engines.build import build_engine, engine_name
from dist_moe.engines.deepspeed_config import read_deepspeed_config
from dist_moe.files import append_line, writing
from dist_moe.model.model import MoEModel, load_model
from dist_moe.moe.discover import require_routers
from dist_moe.moe.route_mask import surviving_slots
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import Placement
from dist_moe.stats.names import expert_name
from dist_moe.store.origin import require_same_origin
from dist_moe.store.read import MaskStore
from dist_moe.training.checkpoint import Layout, load_checkpoint
from dist_moe.training.facts import Arms, Numbers, RunFacts
from dist_moe.training.loop import Split, check_ledger, schedule_steps, train_loop
from dist_moe.training.optimizer import SelectiveAdamW
from dist_moe.training.plan import FreezePlan
from dist_moe.training.promise import stored_promises
from dist_moe.training.save import save_experts
from dist_moe.training.saving import CheckpointSaver
from dist_moe.training.step import MaskedStep, batch_loss, route_plan
from dist_moe.training.stop import StopRequest
from dist_moe.workflows.inputs import Inputs, read_inputs
from dist_moe.workflows.results import is_finished, publish_results
from dist_moe.workflows.resume import clear_the_way, resume_facts, unfinished_run
from dist_moe.workflows.run_dir import RunDir, result_settings
from dist_moe.workflows.run_lock import run_lock

log = logging.getLogger(__name__)


def train(config: Config, comm: Comm, launcher: int | None = None) -> None:
    """Train each batch's unsafe experts, and nothing else, on the engine that the configuration names.

    `launcher` is the process that has started this one and watches it, if there is one: without it the run stops.
    """
    run = RunDir(config.run_dir)
    stop = StopRequest(run.stop, run.requeue, comm, launcher)
    with run_lock(run.path, comm) as lock:
        stop.begin()
        if is_finished("train", config, lock, comm, (run.checkpoints, run.training)):
            log.info(f"Trained experts: in {run.experts}; an earlier start had only to put them there")
        else:
            _train(config, comm, stop)


def _train(config: Config, comm: Comm, stop: StopRequest) -> None:
    run = RunDir(config.run_dir)
    work = RunDir(run.training) if config.overwrite else run
    mesh = Mesh.of(comm, config.parallel.ep_size)
    with together(comm) as same:
        name = engine_name(config)
        deepspeed_settings = read_deepspeed_config(config.train.deepspeed_config)
        store = MaskStore.open_whole(config.train.masks or run.masks)
        same["the mask store's digest"] = store.digest
        inputs = read_inputs(config)
        same |= inputs.facts
        require_same_origin(
            store,
            model_hash=inputs.model_hash,
            tokenizer_hash=inputs.tokenizer_hash,
            data_hash=inputs.prompts.data_hash,
            tokens_hash=inputs.tokens_hash,
            batch_ids=list(inputs.batches.ids),
        )
        facts = resume_facts(config, inputs, store)
        found = unfinished_run(work, config, facts) if comm.rank == 0 else None
        model = load_model(config.model, mesh.ep, place_experts(config, store, mesh.ep.size))
        if config.train.mode == "route":
            require_routers(model.module)
    found = comm.gather(found)[0]
    if config.train.activation_checkpointing:
        model.checkpoint_activations()
    plan = freeze_plan(store, model)
    for line in (*plan.describe(), *_per_batch(store), *model.describe()):
        log.info(line)
    num_steps = len(store.batches) * config.train.epochs
    optimizer = _optimizer(config, model, plan, mesh)
    schedule = _schedule(config.train, optimizer, num_steps)
    split = Split.of(config.batches.batch_size, comm.size, model.at_once(config.train.micro_batch_size))
    engine = build_engine(
        name,
        model,
        optimizer,
        schedule,
        comm,
        deepspeed_settings=deepspeed_settings,
        micro_batch_size=split.micro_batch_size,
        num_micro_batches=split.num_micro_batches,
    )
    log.info(f"Engine: {engine.name}, {comm.size} rank(s); mode {config.train.mode}")
    log.info(_placement_line(config, model, plan, mesh))
    if config.overwrite:
        log.info(f"Until this run has ended, its results are in {work.path}, and earlier ones stay")
    if config.train.mode == "route" and found is None:
        _tell_route_cost(config, store, inputs, model, split, comm)
        engine.release()
    with together(comm), writing(run.path):
        if comm.rank == 0:
            work.path.mkdir(exist_ok=True)
            clear_the_way(work, found)
            save_config(config, work.resolved("train"))
    layout = Layout(engine.name, comm.size, mesh.ep.size, model.placement.hash())
    saver = CheckpointSaver(
        root=work.checkpoints,
        optimizer=optimizer,
        schedule=schedule,
        comm=comm,
        facts=facts,
        layout=layout,
        keep=config.checkpoint.keep,
        asynchronous=config.checkpoint.asynchronous,
        metrics=work.metrics,
    )
    if found is not None:
        load_checkpoint(found, optimizer, schedule)
        log.info(f"Going on after step {found.step} of {num_steps}, from {found.path}")
        if found.layout != layout:
            log.info(f"  It was written by {found.layout}; here {layout}: the same but for rounding, not bit for bit")
    elif config.checkpoint.every:
        saver.save(0)
        saver.finish()  # a run with steps and without a checkpoint could not go on
    step = MaskedStep(model, optimizer, engine, comm, config.train, stored_promises(store))

    def write(line: str) -> None:
        with stop.failing_together(), writing(work.metrics):
            append_line(work.metrics, line)

    def after_step(done: int) -> bool:
        asked, written = stop.agreed(saver.written)
        stopping = asked and done < num_steps
        if written:
            saver.finish()
        if stopping or (config.checkpoint.every and done % config.checkpoint.every == 0):
            saver.save(done)
        return stopping

    with stop:
        done = train_loop(
            config,
            step,
            store,
            inputs.rows,
            split,
            pad_id=inputs.pad_id,
            comm=comm,
            write=write,
            start=0 if found is None else found.step,
            after_step=after_step,
        )
        saver.finish()
        stop.done(stopped=done < num_steps)
    if done < num_steps:
        log.info(f"Stopped after step {done} of {num_steps}, as asked, and saved: the same command goes on")
        return
    with together(comm), writing(work.path):
        if comm.rank == 0:
            check_ledger(work.metrics, store, config.train.epochs, config.seed)
            work.evaluation.unlink(missing_ok=True)  # of experts that somebody has removed
    facts_of_run = asdict(run_facts(config, inputs, store, plan))
    num_saved = save_experts(work.experts, model.layers, optimizer, comm, facts_of_run)
    with together(comm), writing(run.path):
        if comm.rank == 0 and config.overwrite:
            publish_results("train", work.path, run.path)
    log.info(f"Trained experts: {num_saved} of {plan.num_experts}, in {run.experts}; metrics in {run.metrics}")


def _optimizer(config: Config, model: MoEModel, plan: FreezePlan, mesh: Mesh) -> SelectiveAdamW:
    train = config.train
    return SelectiveAdamW(
        model.layers,
        torch.from_numpy(plan.union_LE),
        mesh,
        lr=train.lr,
        betas=train.betas,
        eps=train.eps,
        weight_decay=train.weight_decay,
        max_norm=train.max_norm,
        state_device=torch.device("cpu") if config.parallel.offload_optimizer == "cpu" else None,
    )


def _schedule(train: TrainConfig, optimizer: SelectiveAdamW, num_steps: int) -> LRScheduler:
    curve = "constant_with_warmup" if train.schedule == "constant" else train.schedule
    return get_scheduler(curve, optimizer, train.warmup_steps, num_steps)


def place_experts(config: Config, store: MaskStore, ep_size: int) -> Placement:
    """Where training puts each expert; a function of the masks, so the same on all ranks."""
    if config.parallel.placement == "balanced":
        return Placement.balanced(store.masks[:], ep_size)
    _, num_layers, num_experts = store.masks.shape
    return Placement.contiguous(num_layers, num_experts, ep_size)


def _placement_line(config: Config, model: MoEModel, plan: FreezePlan, mesh: Mesh) -> str:
    owned_R = model.placement.num_owned(torch.from_numpy(plan.union_LE), mesh.replicas.size)
    megabytes = 12e-6 * max(owned_R) * plan.num_expert_parameters
    return (
        f"Placement: {config.parallel.placement}, {mesh.replicas.size} replica(s) of {mesh.ep.size} rank(s); a rank "
        f"trains {min(owned_R)} to {max(owned_R)} of the union's experts, optimizer state at most {megabytes:,.1f} MB"
    )


def freeze_plan(store: MaskStore, model: MoEModel) -> FreezePlan:
    """The plan that a store's masks ask of a model."""
    union_LE = store.union()
    assert union_LE.shape == (model.shape.num_layers, model.shape.num_experts)
    return FreezePlan(union_LE, model.layers[0].layout.size, model.num_parameters)


def run_facts(config: Config, inputs: Inputs, store: MaskStore, plan: FreezePlan) -> RunFacts:
    """What the experts are trained from and how; saved with them, and shown in an export's model card."""
    num_unsafe = int(store.prompts["unsafe"].sum())
    return RunFacts(
        dist_moe_version=__version__,
        model_path=str(config.model.path),
        model_hash=inputs.model_hash,
        tokenizer_hash=inputs.tokenizer_hash,
        data_hash=inputs.prompts.data_hash,
        masks_digest=store.digest,
        selection_rule=store.rule.facts,
        counted_tokens=store.counted_tokens,
        batches=dict(Counter(store.categories)),
        prompts=Arms(safe=len(store.prompts) - num_unsafe, unsafe=num_unsafe),
        chosen=_chosen(store),
        mode=config.train.mode,
        fill=config.train.fill,
        scope=config.train.scope,
        num_steps=len(store.batches) * config.train.epochs,
        union=[expert_name(layer, expert) for layer, expert in np.argwhere(plan.union_LE).tolist()],
        num_union_parameters=plan.num_trainable,
        num_parameters=plan.num_parameters,
        settings=result_settings(config),
    )


def _chosen(store: MaskStore) -> Numbers:
    """All choices of the masks by the sign of their risk_diff."""
    masks = store.masks
    signs = [np.sign(store.risk_diff[start:stop][masks[start:stop]]) for start, stop in masks.slabs(0, len(masks))]
    above, below, zero = (sum(int((part == sign).sum()) for part in signs) for sign in (1, -1, 0))
    return Numbers(above_0=above, below_0=below, of_0=zero)


def _per_batch(store: MaskStore) -> list[str]:
    numbers = np.array([batch.num_unsafe_experts for batch in store.batches])
    return [f"Unsafe experts per batch: Min {numbers.min()}, Max {numbers.max()}, Mean {numbers.mean():.1f}"]


def _tell_route_cost(
    config: Config, store: MaskStore, inputs: Inputs, model: MoEModel, split: Split, comm: Comm
) -> None:
    """`route` trains the model in a state in which it is never used: say what that costs before the first step."""
    masks = [torch.from_numpy(store.masks[batch.index]) for batch in store.batches]
    share = sum(surviving_slots(mask, model.shape.top_k) for mask in masks) / len(masks)
    first = next(schedule_steps(len(masks), config.train.epochs, config.seed)).batch
    micro_batches = split.local(inputs.rows(first), comm.rank, inputs.pad_id)
    unmasked = batch_loss(model, micro_batches, None, comm)
    masked = batch_loss(model, micro_batches, route_plan(config.train, masks[first]), comm)
    rows = " of unsafe rows" if config.train.scope == "unsafe" else ""
    slots = f"{100 * share:.1f} % of the routing slots{rows} survive (mean over batches)"
    if config.train.fill != "shrink":
        slots = f"all routing slots{rows} stay in use (fill {config.train.fill})"
    log.info(
        f"Mode route: {slots}; loss of batch {first} is {unmasked:.4f} without the mask and {masked:.4f} under it."
    )
    log.info("  Inference has no mask. `--train.mode update` trains the same experts and leaves the routing as it is.")
