"""Reads the inputs of a training run, and compares them over all ranks before anything is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_moe.config.objective import pair_terms, router_terms
from dist_moe.config.schema import Config, TrainConfig
from dist_moe.conformance.compiling import refuse_compiling
from dist_moe.data.encoded import NONE
from dist_moe.data.named import by_batch
from dist_moe.engines.build import EngineName, engine_name
from dist_moe.engines.deepspeed_config import is_zero3, read_deepspeed_config
from dist_moe.errors import UserError, shown
from dist_moe.model.model import MoEModel, load_model
from dist_moe.moe.discover import require_routers
from dist_moe.parallel.launch import together
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import Placement
from dist_moe.ranges import Count, NonNegative
from dist_moe.selection.stored import open_masks
from dist_moe.store.origin import require_same_origin
from dist_moe.trackers.metrics import Metrics
from dist_moe.trackers.tracker import TRACKERS, Tracker
from dist_moe.training.checkpoint_index import Checkpoint
from dist_moe.training.revisions import MaskRevisions
from dist_moe.training.rounds import Rounds
from dist_moe.training.schedule import EpochSchedule
from dist_moe.training.state import TrainState
from dist_moe.workflows.adjust import Adjusting, read_adjusting
from dist_moe.workflows.inputs import Inputs, read_inputs
from dist_moe.workflows.passes import require_passes
from dist_moe.workflows.resume import own_revisions, resume_facts, unfinished_run
from dist_moe.workflows.run_dir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Inputs of a training run. The same on all ranks, except the model, of which each rank has its own experts."""

    engine: EngineName
    deepspeed_settings: dict[str, Any]
    masks: MaskRevisions
    inputs: Inputs
    facts: dict[str, Any]
    """Everything that determines the run's steps."""
    adjusting: Adjusting | None
    """What `train.adjust` needs; None: it is off."""
    first: TrainState
    """The run's state before its first step."""
    schedule: EpochSchedule
    rounds: Rounds
    """What each step trains."""
    found: Checkpoint | None
    """The checkpoint to resume from."""
    model: MoEModel
    trackers: list[Tracker]
    """The configured trackers."""


def read_given(config: Config, work: RunDir, mesh: Mesh) -> Given:
    """Read and check everything. `work` is where the run works until it has finished. Called by all ranks together.

    Raises:
        UserError: on all ranks: something is missing or wrong on one of them, or differs between two.
    """
    comm = mesh.world
    with together(comm) as same:
        name = engine_name(config)
        trackers = _trackers(config)
        require_passes(config, comm.device)
        rounds = require_trainable(config, name)
        deepspeed_settings = read_deepspeed_config(config.train.deepspeed_config)
        if config.train.compile:
            refuse_compiling(config, comm.device, sharded=is_zero3(deepspeed_settings))
        masks = _read_masks(config)
        same["the digest of each mask store"] = [store.digest for store in masks.stores]
    inputs = read_inputs(config, comm)
    with together(comm):
        _require_pairs(config.train, inputs)
        schedule, weights = _schedule(config, inputs)
        _require_masks_fit(masks, config, inputs, schedule.num_steps)
        adjusting = read_adjusting(config, inputs, masks.first, work)
        facts = resume_facts(config, inputs, masks, adjusting.rows.rows.prompts.data_hash if adjusting else "")
        found = unfinished_run(work, config, facts, masks) if comm.rank == 0 else None
        placement = place_experts(config, masks, mesh.ep.size)
        model = load_model(config.model, mesh.ep, placement, packed=config.data.packing)
        _require_offered(config.train, rounds, model)
    if config.train.activation_checkpointing:
        model.checkpoint_activations()
    _prepare_dense(model, rounds)
    found = comm.gather(found)[0]
    with together(comm) as same:
        masks = own_revisions(masks, work, found, config.train.adjust.every)
        same["the digests of the masks that the run has written"] = [store.digest for store in masks.stores]
    first = TrainState.first(schedule.begin(), schedule.num_batches, masks[0], config.seed)
    return Given(
        engine=name,
        deepspeed_settings=deepspeed_settings,
        masks=masks,
        inputs=inputs,
        facts=facts,
        adjusting=adjusting,
        first=first.adjusted(weights, []),
        schedule=schedule,
        rounds=rounds,
        found=found,
        model=model,
        trackers=trackers,
    )


def require_trainable(config: Config, engine: EngineName) -> Rounds:
    """What each step trains; refuses what cannot be trained on an engine, and rounds that say nothing.

    Raises:
        UserError: says what to do.
    """
    rounds = Rounds.of(config.train.trains, config.train.rounds)
    if rounds.ever.dense and not rounds.routers_only and engine != "local":
        raise UserError(
            f"train.trains is {rounds.trains}, which the engine {engine} cannot do: it would not sum the gradients of "
            "all dense weights. Run it in one process (`dist-moe train`, engine local), or train experts_and_routers"
        )
    return rounds


def _require_pairs(train: TrainConfig, inputs: Inputs) -> None:
    """Refuse terms over pairs of answers where no row has two."""
    for term in pair_terms(train.objective):
        if (inputs.encoded.rows.column("rejected") == NONE).all():
            raise UserError(
                f"train.objective.{term}: no row has a `rejected` answer: add that column, or set its weight to 0"
            )


def _require_offered(train: TrainConfig, rounds: Rounds, model: MoEModel) -> None:
    """Refuse settings that ask for routers or router logits that this model does not have."""
    if train.mode == "route":
        require_routers(model.module)
    if rounds.routers_only:
        require_routers(model.module, "train.trains cannot train: set it to experts")
    for term in router_terms(train.objective):
        require_routers(model.module, f"train.objective.{term} has no logits of: set its weight to 0")


def _prepare_dense(model: MoEModel, rounds: Rounds) -> None:
    """Prepare the dense weights that the run trains."""
    if rounds.ever.dense:
        every = (name for name, _ in model.module.named_parameters())
        model.train_dense(model.router_names if rounds.routers_only else [*every])


def _trackers(config: Config) -> list[Tracker]:
    names = [name for name in config.train.trackers if name != Metrics.name]
    try:
        return [TRACKERS.find(name)() for name in dict.fromkeys(names)]
    except UserError as error:
        raise UserError(f"train.trackers: {error}") from None


def _read_masks(config: Config) -> MaskRevisions:
    later = [_revision(text) for text in config.train.revisions]
    ends = [end for end, _ in later]
    if sorted(set(ends)) != ends:
        raise UserError(f"train.revisions: expected ascending steps, got {', '.join(map(str, ends))}")
    paths = [config.train.masks or RunDir(config.run_dir).masks, *(path for _, path in later)]
    return MaskRevisions(tuple(open_masks(path) for path in paths), tuple(ends))


def _revision(text: str) -> tuple[int, str]:
    step, _, path = text.partition(":")
    if not (step.isascii() and step.isdigit() and int(step) > 0 and path):
        raise UserError(f"train.revisions: expected STEP:STORE, such as 40:masks.r1.zarr, got {shown(text)}")
    return int(step), path


def _schedule(config: Config, inputs: Inputs) -> tuple[EpochSchedule, tuple[float, ...]]:
    """Which batch comes when, and the batches' first weights."""
    train, index = config.train, inputs.batches
    weights = by_batch(train.weights, "train.weights", index, NonNegative, 1.0)
    if not any(weights):
        raise UserError("train.weights: every batch has weight 0, so nothing would be trained: set one above 0")
    repeats = by_batch(train.repeats, "train.repeats", index, Count, 1)
    tokens: tuple[int, ...] = ()
    if train.max_tokens is not None:
        tokens = inputs.num_tokens
    schedule = EpochSchedule(len(index), train.epochs, config.seed, repeats, train.max_tokens, tokens)
    schedule.require_enough()
    return schedule, weights


def _require_masks_fit(masks: MaskRevisions, config: Config, inputs: Inputs, num_steps: int) -> None:
    """Check that all masks belong to this run's model, data and batches, and that each revision is used in a step."""
    for store in masks.stores:
        require_same_origin(
            store,
            model_hash=inputs.model_hash,
            tokenizer_hash=inputs.tokenizer_hash,
            data_hash=inputs.prompts.data_hash,
            tokens_hash=inputs.tokens_hash,
            batch_ids=list(inputs.batches.ids),
        )
    if masks.ends and masks.ends[-1] >= num_steps:
        raise UserError(
            f"train.revisions: masks after step {masks.ends[-1]} would train nothing, as the run has {num_steps} steps"
        )


def place_experts(config: Config, masks: MaskRevisions, ep_size: int) -> Placement:
    """The ranks of all experts for the whole run: a function of all its masks, so the same on all ranks."""
    if config.parallel.placement == "balanced":
        return Placement.balanced(np.concatenate([store.masks[:] for store in masks.stores]), ep_size)
    _, num_layers, num_experts = masks.first.masks.shape
    return Placement.contiguous(num_layers, num_experts, ep_size)
