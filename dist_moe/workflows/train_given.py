"""What a training run is given, read and compared by all ranks before anything of it is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dist_moe.config.schema import Config
from dist_moe.engines.build import EngineName, engine_name
from dist_moe.engines.deepspeed_config import read_deepspeed_config
from dist_moe.model.model import MoEModel, load_model
from dist_moe.moe.discover import require_routers
from dist_moe.parallel.launch import together
from dist_moe.parallel.mesh import Mesh
from dist_moe.parallel.placement import Placement
from dist_moe.select.stored import open_masks
from dist_moe.store.origin import require_same_origin
from dist_moe.store.read import MaskStore
from dist_moe.training.checkpoint import Checkpoint
from dist_moe.training.revisions import MaskRevisions
from dist_moe.workflows.inputs import Inputs, read_inputs
from dist_moe.workflows.resume import resume_facts, unfinished_run
from dist_moe.workflows.run_dir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The same on all ranks, but for the model, of which each has its own experts."""

    engine: EngineName
    deepspeed_settings: dict[str, Any]
    masks: MaskRevisions
    inputs: Inputs
    facts: dict[str, Any]
    """What determines the run's steps."""
    found: Checkpoint | None
    """What the run goes on from."""
    model: MoEModel


def read_given(config: Config, work: RunDir, mesh: Mesh) -> Given:
    """Read and check all. `work` is where the run is until it has ended. Called by all ranks together.

    Raises:
        UserError: on all ranks, if something is not there or not as it should be on one, or differs between two.
    """
    comm = mesh.world
    with together(comm) as same:
        name = engine_name(config)
        deepspeed_settings = read_deepspeed_config(config.train.deepspeed_config)
        store = open_masks(config.train.masks or RunDir(config.run_dir).masks)
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
        masks = MaskRevisions((store,))
        facts = resume_facts(config, inputs, store)
        found = unfinished_run(work, config, facts) if comm.rank == 0 else None
        model = load_model(config.model, mesh.ep, place_experts(config, store, mesh.ep.size))
        if config.train.mode == "route":
            require_routers(model.module)
    if config.train.activation_checkpointing:
        model.checkpoint_activations()
    return Given(
        engine=name,
        deepspeed_settings=deepspeed_settings,
        masks=masks,
        inputs=inputs,
        facts=facts,
        found=comm.gather(found)[0],
        model=model,
    )


def place_experts(config: Config, store: MaskStore, ep_size: int) -> Placement:
    """Where training puts each expert; a function of the masks, so the same on all ranks."""
    if config.parallel.placement == "balanced":
        return Placement.balanced(store.masks[:], ep_size)
    _, num_layers, num_experts = store.masks.shape
    return Placement.contiguous(num_layers, num_experts, ep_size)
