"""`dist-moe train` and launch/train.py: train the experts of the masks, on one process or many."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from typing import Any

import torch

from dist_moe.config.load import save_config
from dist_moe.config.objective import needs_base
from dist_moe.config.schema import Config
from dist_moe.evaluation.curve import ALPHAS
from dist_moe.files import writing
from dist_moe.hub.names import origin_facts
from dist_moe.interruption import Interruption
from dist_moe.parallel.comm import Comm
from dist_moe.parallel.launch import together
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.shared_files import remove_partial
from dist_moe.report.training import before_training
from dist_moe.trackers.metrics import Metrics
from dist_moe.trackers.tracker import Place
from dist_moe.training.adjustments import read_adjustments
from dist_moe.training.checkpoint_index import Checkpoint, Layout
from dist_moe.training.engine import Engine
from dist_moe.training.feed import BatchFeed
from dist_moe.training.ledger import check_ledger
from dist_moe.training.promise import stored_promises
from dist_moe.training.restore import load_checkpoint
from dist_moe.training.save import save_experts
from dist_moe.training.saving import CheckpointSaver
from dist_moe.training.schedule import EpochSchedule
from dist_moe.training.state import TrainState
from dist_moe.training.step import MaskedStep
from dist_moe.training.stop import StopRequest
from dist_moe.training.trainer import Trainer
from dist_moe.workflows.adjust import RunAdjuster
from dist_moe.workflows.ep_size import resolved_ep_size
from dist_moe.workflows.inputs import keep_inputs
from dist_moe.workflows.model_place import from_hub
from dist_moe.workflows.rank_log import RankLog
from dist_moe.workflows.results import EVALUATION, is_finished, publish_results
from dist_moe.workflows.resume import clear_the_way
from dist_moe.workflows.route_cost import tell_route_cost
from dist_moe.workflows.run_dir import RunDir
from dist_moe.workflows.run_lock import run_lock
from dist_moe.workflows.train_facts import freeze_plan, run_facts
from dist_moe.workflows.train_given import Given, read_given
from dist_moe.workflows.train_parts import Parts, build_parts
from dist_moe.workflows.train_plan import MemoryWatch

log = logging.getLogger(__name__)


def train(config: Config, comm: Comm, launcher: int | None = None, interruption: Interruption | None = None) -> None:
    """Train each batch's unsafe experts, and nothing else, on the engine that the configuration names.

    `launcher` is the process that started this one and watches it, if there is one; if it dies, the run stops, as it
    does after its next step where an `interruption` was lost on its way.
    """
    comm.heartbeat.limit_s = config.parallel.timeout
    config, run = from_hub(config, comm), RunDir(config.run_dir)
    stop = StopRequest(run.stop, run.requeue, comm, launcher, interruption)
    with run_lock(run.path, comm) as lock, RankLog(run.path, comm, "train", "steps") as told:
        stop.begin()
        if is_finished("train", config, lock, comm, (run.checkpoints, run.training)):
            log.info(f"Trained experts: in {run.experts} (they were complete; only the move to this place was left)")
        else:
            _train(config, comm, stop, told)


def _train(config: Config, comm: Comm, stop: StopRequest, told: RankLog) -> None:
    work = RunDir(RunDir(config.run_dir).training if config.overwrite else config.run_dir)
    mesh = Mesh.of(comm, resolved_ep_size(config, work, comm))
    given = read_given(config, work, mesh)
    masks, model, found, schedule = given.masks, given.model, given.found, given.schedule
    plan = freeze_plan(masks, model, given.rounds)
    if needs_base(config.train.objective):  # before a checkpoint is read
        model.keep_originals(torch.from_numpy(plan.union_LE))
    state = given.first if found is None else found.index.state
    in_force = masks.stores[state.masks.number]
    parts = build_parts(config, given, in_force, mesh)
    engine, optimizer = parts.engine, parts.optimizer
    adjuster = _adjuster(config, work, given, engine, comm)
    for line in before_training(config, engine.name, masks, model, plan, mesh, work.path, schedule.num_steps):
        log.info(line)
    if config.train.mode == "route" and found is None:
        tell_route_cost(config.train, given, parts.rows, comm)
        engine.release()
    _prepare(config, work, found, comm)
    keep_inputs(given.inputs, config, comm)
    watch = MemoryWatch(config, work, given, parts, mesh)
    facts = given.facts | origin_facts(config.model.path)
    saver = _saver(config, work, parts, facts, Layout.of(engine.name, mesh, model.placement))
    _begin(config, found, state, schedule, saver)
    told.begin(state.step, schedule.total(state))
    if adjuster is not None:
        adjuster.tell_rule()
    trainer = Trainer(
        state=state,
        schedule=schedule,
        step=MaskedStep(model, optimizer, engine, comm, config.train, stored_promises(in_force)),
        masks=masks,
        rounds=given.rounds,
        feed=BatchFeed(parts.rows, comm.device),
        trackers=[Metrics(), told, *given.trackers],
        place=Place(work.path, comm.rank, schedule.num_steps),
        saver=saver,
        checkpoint_every=config.checkpoint.every,
        stop=stop,
        adjuster=adjuster,
        watch=watch,
    )
    if trainer.run():
        watch.finish()
        _finish(config, work, trainer, given)


def _adjuster(config: Config, work: RunDir, given: Given, engine: Engine, comm: Comm) -> RunAdjuster | None:
    if given.adjusting is None:
        return None
    return RunAdjuster(
        settings=config.train.adjust, model=given.model, engine=engine, comm=comm, given=given.adjusting, work=work
    )


def _prepare(config: Config, work: RunDir, found: Checkpoint | None, comm: Comm) -> None:
    """Prepare the run directory for the first step of this start."""
    with together(comm), writing(config.run_dir):
        if comm.rank == 0:
            work.path.mkdir(exist_ok=True)
            remove_partial(config.run_dir, RunDir(config.run_dir).rows.name)
            clear_the_way(work, found, config.train.adjust.every)
            save_config(config, work.resolved("train"))


def _saver(config: Config, work: RunDir, parts: Parts, facts: dict[str, Any], layout: Layout) -> CheckpointSaver:
    return CheckpointSaver(
        root=work.checkpoints,
        optimizer=parts.optimizer,
        schedule=parts.curve,
        comm=parts.comm,
        facts=facts,
        layout=layout,
        keep=config.checkpoint.keep,
        asynchronous=config.checkpoint.asynchronous,
        metrics=work.metrics,
    )


def _begin(
    config: Config,
    found: Checkpoint | None,
    state: TrainState,
    schedule: EpochSchedule,
    saver: CheckpointSaver,
) -> None:
    """Restore experts, optimizer and learning rate to `state`, or save a first checkpoint."""
    if found is not None:
        with together(saver.comm):
            load_checkpoint(found, saver.optimizer, saver.schedule)
        log.info(f"Resuming after step {found.step} of {schedule.total(state)}, from {found.path}")
        if found.layout != saver.layout:
            here = f"here {saver.layout}: the results are equal up to rounding, not bit for bit"
            log.info(f"  It was written by {found.layout}; {here}")
    elif config.checkpoint.every:
        saver.save(state)
        saver.finish()  # a run with steps and without a checkpoint could not go on


def _finish(config: Config, work: RunDir, trainer: Trainer, given: Given) -> None:
    """Verify metrics.jsonl, and publish the trained experts."""
    comm, run, masks = trainer.step.comm, RunDir(config.run_dir), trainer.masks
    plan = freeze_plan(masks, given.model, trainer.rounds)
    with together(comm), writing(work.path):
        if comm.rank == 0:
            adjustments = read_adjustments(work.adjustments)
            check_ledger(work.metrics, trainer.schedule, masks, trainer.rounds, given.first, trainer.state, adjustments)
            for name in EVALUATION:
                (work.path / name).unlink(missing_ok=True)  # of experts that somebody has removed
            shutil.rmtree(work.path / ALPHAS, ignore_errors=True)
    facts = asdict(run_facts(config, given.inputs, masks, plan, trainer.state.step))
    num_saved = save_experts(work.experts, given.model.layers, trainer.step.optimizer, comm, facts)
    with together(comm), writing(run.path):
        if comm.rank == 0 and config.overwrite:
            publish_results("train", work.path, run.path)
    also = f", and {len(trainer.step.optimizer.dense.changed)} dense weights" if plan.num_dense_parameters else ""
    log.info(f"Trained experts: {num_saved} of {plan.num_experts}{also}, in {run.experts}; metrics in {run.metrics}")
