"""Loads a checkpoint into a model that holds only one rank's experts; other experts are not read.

The model is built on the meta device, its experts modules are reduced to this rank's experts, and transformers' own
weight conversion fills it from lazy slices of the shards. So every family that transformers can load can be loaded,
with one tensor per expert on disk or with fused ones. To know when reading it:

- Dense weights stay memory-mapped to the files, as in `from_pretrained`; expert weights are copies that can be written.
- Every rank checks all names, types and shapes in the headers of the shards (misfits.py), so all ranks fail alike.
- A rank looks for NaN and infinity in what it has loaded; all ranks together cover everything that is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from dist_moe.errors import UserError, refused_by_library, shown
from dist_moe.moe.adapters.adapt import adapt, own_conversions
from dist_moe.moe.bank import expert_weights
from dist_moe.moe.discover import MoELayer
from dist_moe.moe.internals import WeightConversion, warn_if_untested
from dist_moe.moe.misfits import refuse_misfits, refuse_not_finite, where
from dist_moe.weights.configuration import ADVICE, read_config, read_generation_config, refused_by_transformers
from dist_moe.weights.directory import CONFIG, Row, StoredTensor, read_tensors
from dist_moe.weights.expert_tensors import HubTensor
from dist_moe.weights.values import DTYPES


def empty_model(
    path: Path, dtype: torch.dtype | None = None, *, weights: bool = True, attention: str = "auto"
) -> PreTrainedModel:
    """The whole model of a checkpoint on the meta device: shapes without values, in the checkpoint's data type.

    Without `weights`, nobody will read them, so they need not be there; `dtype` must be given. `attention` is as in
    `ModelConfig`.

    Raises:
        UserError: config.json or generation_config.json cannot be read by transformers, or the model is not supported,
            or not with this attention.
    """
    warn_if_untested()
    config = read_config(path, weights=weights)
    if dtype is None:
        own = config.dtype or next((DTYPES[t.dtype] for t in read_tensors(path).values() if t.dtype in DTYPES), None)
        if not isinstance(own, torch.dtype) or own not in DTYPES.values():
            raise UserError(
                f"{path / CONFIG}: dtype {shown(own)} cannot be trained: use a checkpoint of floating point"
            )
        dtype = own
    refused, asked = refused_by_transformers(path / CONFIG), None
    if attention != "auto":
        asked, instead = attention, "set model.attention to auto, or install what it says is missing"
        refused = refused_by_library(f"model.attention: no {attention} for {path}", instead, (ImportError, ValueError))
    with refused, torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=asked, trust_remote_code=False
        )
    model.generation_config = read_generation_config(path) or model.generation_config
    adapt(model)
    return model.eval()


def keep_experts(layers: tuple[MoELayer, ...], owned: Sequence[Sequence[int]]) -> None:
    """Reduce the expert weights of MoE layer l, [E, ...] each, to the rows `owned[l]`, in that order."""
    for layer, experts in zip(layers, owned, strict=True):
        for name in expert_weights(layer.experts):
            rows = layer.experts.get_parameter(name).detach()[list(experts)]
            setattr(layer.experts, name, nn.Parameter(rows))


def fill(model: PreTrainedModel, layers: tuple[MoELayer, ...], path: Path, owned: Sequence[Sequence[int]]) -> None:
    """Fill a model of `empty_model`, with only the experts `owned[l]`, ascending, of MoE layer l.

    Expert weights become [len(owned[l]), ...]; all values are bit-equal to those of `from_pretrained`.

    Raises:
        UserError: the checkpoint lacks a tensor, or has one that does not fit the model or has a value that is NaN or
            infinite.
    """
    stored = read_tensors(path)
    conversion = WeightConversion(model, stored, own_conversions(model))
    target_of = conversion.target_of
    refuse_misfits(model, layers, path, stored, conversion)
    keep_experts(layers, owned)
    of_experts = tensors_of_experts(layers, stored, conversion)
    with ExitStack() as stack:
        files = {file: stack.enter_context(safe_open(file, "pt")) for file in {t.file for t in stored.values()}}
        tensors: dict[str, Any] = {}
        for name, target in target_of.items():
            lazy = files[stored[name].file].get_slice(name)
            found = of_experts.get(name)
            if found is None:
                tensors[name] = lazy
            elif not owned[found.layer]:  # transformers wants a value for every weight, also for one without rows
                tensors[target] = torch.empty_like(model.get_parameter(target), device="cpu")
            elif found.expert is None:
                tensors[name] = _Rows(lazy, [found.row(expert) for expert in owned[found.layer]])
            elif found.expert in owned[found.layer]:
                tensors[name] = lazy
        conversion.load(path, tensors, partial(where, path, stored, target_of), ADVICE)
    refuse_not_finite(model, stored, target_of)


def tensors_of_experts(
    layers: tuple[MoELayer, ...], stored: dict[str, StoredTensor], conversion: WeightConversion
) -> dict[str, HubTensor]:
    """Names of the checkpoint tensors that hold expert weights, including those of null experts."""
    weights = {
        f"{layer.name}.{weight}": (layer, weight) for layer in layers for weight in expert_weights(layer.experts)
    }
    found = {}
    for name, target in conversion.target_of.items():
        if target in weights:
            layer, weight = weights[target]
            num_dims = layer.experts.get_parameter(weight).dim()
            found[name] = HubTensor.of(layer.index, name, stored[name], num_dims, layer.num_experts)
    return found


class _Rows:
    """Some rows of a fused tensor, read when transformers asks for all of it."""

    def __init__(self, lazy: Any, rows: Sequence[Row]) -> None:
        self.lazy, self.rows = lazy, rows

    def __getitem__(self, everything: EllipsisType) -> torch.Tensor:
        return torch.stack([self.lazy[row] for row in self.rows])
