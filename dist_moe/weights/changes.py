"""The difference between a base and its repaired model, as a stream of (place, new bytes): one expert at a time, then
the trained dense weights.

Both a run's trained experts and a delta file give such a stream; export.py, which takes it, does not know which.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from dist_moe.weights.layout import HubLayout, Place
from dist_moe.weights.parts import Expert
from dist_moe.weights.scale import scaled
from dist_moe.weights.trained import TrainedExperts
from dist_moe.weights.values import DTYPES, read_tensor

Change = tuple[Place, np.ndarray]
"""A place in a checkpoint and its new bytes, uint8."""


def trained_places(layout: HubLayout, experts: Iterable[Expert]) -> list[tuple[Place, Expert]]:
    """The places of these experts, each with its expert, sorted by name; reads no weights."""
    experts_of: dict[int, list[int]] = {}
    for layer, expert in sorted(set(experts)):
        experts_of.setdefault(layer, []).append(expert)
    places = []
    for name, tensor in layout.tensors.items():
        places += [
            (Place(name, tensor.row(expert) if tensor.expert is None else None), (tensor.layer, expert))
            for expert in experts_of.get(tensor.layer, ())
            if tensor.expert in (None, expert)
        ]
    return sorted(places, key=lambda found: str(found[0]))


def dense_places(layout: HubLayout, trained: TrainedExperts, *, base_routers: bool = False) -> list[Place]:
    """The places of a run's trained dense weights, sorted by name; with `base_routers` not those of routers."""
    return [Place(name) for name in _dense(layout, trained, base_routers=base_routers)]


def _dense(layout: HubLayout, trained: TrainedExperts, *, base_routers: bool) -> dict[str, torch.Tensor]:
    """A run's trained dense weights by the tensors that they become, sorted by name."""
    if trained.dense is None:
        return {}
    trained.require_dense_fits(layout.dense_shapes, layout.router_weights)
    found = sorted(layout.dense_to_hub(trained.dense_weights()).items())
    return {name: values for name, values in found if not (base_routers and name in layout.routers)}


def trained_changes(
    layout: HubLayout, trained: TrainedExperts, alpha: float = 1.0, *, base_routers: bool = False
) -> Iterator[Change]:
    """What a run has trained, under the tensor names and in the data types of the base that `layout` describes.

    With another `alpha` than 1, only this share of their change: see `scaled`. With `base_routers`, routers stay as
    they are in the base.

    Raises:
        UserError: they are of a model with other layers, experts or shapes, or are not what the run trains.
    """
    trained.require_fits(layout.num_layers, layout.num_experts, layout.expert_shapes)
    for (layer, expert), weights in trained.weights():
        for place, values in layout.to_hub(layer, expert, weights):
            yield _change(layout, place, values, alpha)
    for name, values in _dense(layout, trained, base_routers=base_routers).items():
        yield _change(layout, Place(name), values, alpha)


def _change(layout: HubLayout, place: Place, values: torch.Tensor, alpha: float) -> Change:
    target = place.of(layout.stored)
    assert target.shape == tuple(values.shape), f"{place}: {target.shape} is not {tuple(values.shape)}"
    new = scaled(read_tensor(target), values, alpha, DTYPES[target.dtype])
    return place, new.contiguous().reshape(-1).view(torch.uint8).numpy()
