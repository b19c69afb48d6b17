"""Finds where a model directory keeps its experts, from config.json and the tensors' headers; no weights are read.

The mapping from memory to disk is transformers' own weight conversion; this file asks it for names, and maps rows to
experts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel

from dist_moe.moe.adapters.adapt import own_conversions
from dist_moe.moe.bank import expert_weights
from dist_moe.moe.discover import MoELayer, find_moe_layers, moe_shape
from dist_moe.moe.internals import WeightConversion
from dist_moe.moe.load import empty_model, tensors_of_experts
from dist_moe.moe.misfits import refuse_misfits
from dist_moe.moe.parts import parts_of
from dist_moe.weights.directory import EXPERT_NUMBER, expert_number, read_tensors
from dist_moe.weights.expert_tensors import HubTensor
from dist_moe.weights.layout import Converted, HubLayout, Place


def hub_layout(path: Path) -> HubLayout:
    """The expert tensors of a model directory.

    Raises:
        UserError: its config.json describes no model that is supported, or a tensor does not fit that model.
    """
    stored, model = read_tensors(path), empty_model(path)
    layers = find_moe_layers(model)
    shape = moe_shape(model, layers)
    conversion = WeightConversion(model, stored, own_conversions(model))
    refuse_misfits(model, layers, path, stored, conversion)
    tensors = tensors_of_experts(layers, stored, conversion)
    of_experts = {name: found for name, found in tensors.items() if (found.expert or 0) < shape.num_experts}
    routers = frozenset(name for layer in layers for name in layer.router_names)
    return HubLayout(
        path=path,
        stored=stored,
        tensors=of_experts,
        of_null_experts=frozenset(tensors.keys() - of_experts.keys()),
        num_layers=shape.num_layers,
        num_experts=shape.num_experts,
        expert_shapes={
            name: list(layers[0].experts.get_parameter(name).shape[1:]) for name in expert_weights(layers[0].experts)
        },
        to_hub=partial(_to_hub, layers, conversion, tensors),
        weight_of={name: conversion.target_of[name] for name in conversion.unchanged},
        parts=parts_of(model, layers),
        tied={one: other for pair in model.all_tied_weights_keys.items() for one, other in (pair, pair[::-1])},
        routers=frozenset(name for name, target in conversion.target_of.items() if target in routers),
        router_weights=routers,
        dense_shapes=_dense_shapes(model, layers),
        converted=tuple(_converted(conversion, tensors)),
        dense_to_hub=conversion.dense_to_checkpoint,
    )


def _dense_shapes(model: PreTrainedModel, layers: tuple[MoELayer, ...]) -> dict[str, list[int]]:
    experts = tuple(f"{layer.name}." for layer in layers)
    named = model.named_parameters(remove_duplicate=False)
    return {name: list(weight.shape) for name, weight in named if not name.startswith(experts)}


def _converted(conversion: WeightConversion, tensors: dict[str, HubTensor]) -> Iterator[Converted]:
    names: dict[str, list[str]] = {}
    for name in conversion.target_of.keys() - conversion.unchanged - tensors.keys():
        names.setdefault(conversion.target_of[name], []).append(name)
    for target in sorted(names):
        yield Converted(tuple(sorted(names[target])), tuple(conversion.split[target]))


def _to_hub(
    layers: tuple[MoELayer, ...],
    conversion: WeightConversion,
    tensors: dict[str, HubTensor],
    layer: int,
    expert: int,
    weights: dict[str, torch.Tensor],
) -> Iterator[tuple[Place, torch.Tensor]]:
    state = {f"{layers[layer].name}.{name}": weight[None] for name, weight in weights.items()}
    for name, tensor in conversion.to_checkpoint(state).items():
        if expert_number(name) is None:
            yield Place(name, tensors[name].row(expert)), tensor[0]
        else:  # transformers counts the experts that it is given from 0
            yield Place(EXPERT_NUMBER.sub(str(expert), name)), tensor
