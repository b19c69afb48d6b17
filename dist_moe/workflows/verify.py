"""Verifies an export.

Where the names of the base's tensors tell which expert each is of, neither torch nor transformers is imported, which
takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dist_moe.ranges import Trains
from dist_moe.selection.stored import open_masks
from dist_moe.store import MaskStore
from dist_moe.store.origin import require_same_origin
from dist_moe.training.rounds import Rounds
from dist_moe.weights.directory import model_hash, read_tensors
from dist_moe.weights.expert_tensors import ExpertTensors, named_experts
from dist_moe.weights.fetched import model_directory
from dist_moe.weights.model_dir import check_model_dir
from dist_moe.weights.verify import Verification, verify_checkpoint

COUNTED_WITH_WEIGHTS = "micro_batch_tokens"
"""What a store says of how it was counted, if the model was loaded for that: then each tensor of it was looked at."""


def verify(base: Path, out: Path, masks: Sequence[str], trains: Trains = "experts") -> Verification:
    """Compare `out` with `base`: only what `trains` says may differ: the experts in the union of the stores, and dense
    weights.

    `masks` are the stores of all revisions of the run, `trains` is its train.trains.
    """
    rounds = Rounds(trains)
    base, out = model_directory(base, "base"), model_directory(out, "model")
    for path in (base, out):
        check_model_dir(path)
    stores = [open_masks(each) for each in masks]
    base_hash = model_hash(base)
    for store in stores:
        require_same_origin(store, model_hash=base_hash)
    union_LE = rounds.union(np.logical_or.reduce([store.union() for store in stores]))
    layout = None if rounds.ever.dense else by_names(base, stores[0])
    if layout is not None:
        return verify_checkpoint(layout, out, union_LE)
    from dist_moe.moe.layout import hub_layout

    of_modules = hub_layout(base)
    dense = of_modules.dense(routers_only=rounds.routers_only) if rounds.ever.dense else frozenset[str]()
    return verify_checkpoint(of_modules, out, union_LE, dense)


def by_names(base: Path, store: MaskStore) -> ExpertTensors | None:
    """The base's expert tensors by their names; None: these do not tell, or nobody has loaded this base yet, which is
    when a tensor that does not fit the model is found."""
    if COUNTED_WITH_WEIGHTS not in store.provenance:
        return None
    return named_experts(base, read_tensors(base), store.layer_names, store.num_experts)
