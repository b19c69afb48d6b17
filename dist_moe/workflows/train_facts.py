"""What is known of a training run before its first step, and is stored with its experts."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from dist_moe.config.schema import Config
from dist_moe.hub.names import origin_of
from dist_moe.model.model import MoEModel
from dist_moe.selection.stored import stored_rule
from dist_moe.store import MaskStore
from dist_moe.training.plan import FreezePlan
from dist_moe.training.revisions import MaskRevisions
from dist_moe.training.rounds import Rounds
from dist_moe.version import __version__
from dist_moe.weights.facts import Arms, Numbers, Revision, RunFacts
from dist_moe.workflows.inputs import Inputs
from dist_moe.workflows.trained_run import result_settings


def freeze_plan(masks: MaskRevisions, model: MoEModel, rounds: Rounds) -> FreezePlan:
    """What a run may train, and its size in the model."""
    union_LE = rounds.union(masks.union())
    assert union_LE.shape == (model.shape.num_layers, model.shape.num_experts)
    num_dense = sum(weight.numel() for weight in model.dense.values())
    return FreezePlan(union_LE, model.layers[0].layout.size, model.num_parameters, num_dense)


def run_facts(config: Config, inputs: Inputs, masks: MaskRevisions, plan: FreezePlan, num_steps: int) -> RunFacts:
    """Facts about the training, stored with the experts and shown in an export's model card."""
    store, origin = masks.first, origin_of(config.model.path)
    num_safe, num_unsafe = store.arms_B2.sum(axis=0).tolist()
    return RunFacts(
        dist_moe_version=__version__,
        model_path=str(config.model.path),
        model_repository=None if origin is None else origin.repository,
        model_commit=None if origin is None else origin.commit,
        model_hash=inputs.model_hash,
        tokenizer_hash=inputs.tokenizer_hash,
        data_hash=inputs.prompts.data_hash,
        **_selected(store),
        mask_revisions=[
            Revision(after_step=end, **_selected(later))
            for end, later in zip(masks.ends, masks.stores[1:], strict=True)
        ],
        batches=dict(Counter(store.categories)),
        prompts=Arms(safe=num_safe, unsafe=num_unsafe),
        mode=config.train.mode,
        fill=config.train.fill,
        scope=config.train.scope,
        trains=config.train.trains,
        rounds=list(config.train.rounds),
        num_steps=num_steps,
        union=[(layer, expert) for layer, expert in np.argwhere(plan.union_LE).tolist()],
        num_union_parameters=plan.num_union_parameters,
        num_dense_parameters=plan.num_dense_parameters,
        num_parameters=plan.num_parameters,
        settings=result_settings(config),
    )


def _selected(store: MaskStore) -> dict[str, Any]:
    """The fields of `Selected`."""
    above, below, zero = store.signs_B3.sum(axis=0).tolist()
    return {
        "masks_digest": store.digest,
        "selection_rule": stored_rule(store).facts,
        "counted_tokens": store.counted_tokens,
        "chosen": Numbers(above_0=above, below_0=below, of_0=zero),
    }
