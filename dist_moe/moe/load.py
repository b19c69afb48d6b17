"""Read a checkpoint into a model that holds one rank's experts only: what a rank does not own, it does not read.

The model is built on the meta device, where it costs nothing; its experts modules are cut to the owned rows; then
transformers' own weight conversion fills it from lazy slices of the shards. So a family that transformers can load is a
family that is loaded here, with one tensor an expert on disk or with fused ones. Facts to know:

- The dense weights stay mapped to the files, as in `from_pretrained`; the experts' are copies, which may be written.
- Every rank checks all experts' names and shapes in the shards' headers: a bad checkpoint fails on all ranks alike.
- This file alone uses transformers' loading internals; those it uses are the same in 5.17 and 5.23.
"""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import mode
from types import EllipsisType
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from dist_moe.errors import UserError
from dist_moe.moe.bank import expert_weights
from dist_moe.moe.checkpoint import DTYPES, StoredTensor, read_tensors
from dist_moe.moe.discover import MoELayer
from dist_moe.moe.hub import EXPERT_NUMBER

ADVICE = "copy or download the checkpoint again, or correct its config.json"


def empty_model(path: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The whole model of a checkpoint on the meta device: every shape, no value. No dtype: the checkpoint's."""
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{path / 'config.json'}: quantization_config: quantized weights cannot be trained: use others")
    if dtype is None:
        dtype = config.dtype or next(DTYPES[t.dtype] for t in read_tensors(path).values() if t.dtype in DTYPES)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    return model.eval()


def keep_experts(layers: tuple[MoELayer, ...], owned: Sequence[Sequence[int]]) -> None:
    """Cut the experts' weights of MoE layer l, [E, ...] each, to the rows `owned[l]`, in that order."""
    for layer, experts in zip(layers, owned, strict=True):
        for name in expert_weights(layer.experts):
            rows = layer.experts.get_parameter(name).detach()[list(experts)]
            setattr(layer.experts, name, nn.Parameter(rows))


def fill(model: PreTrainedModel, layers: tuple[MoELayer, ...], path: Path, owned: Sequence[Sequence[int]]) -> None:
    """Give a model of `empty_model` its values, but only the experts `owned[l]`, ascending, of MoE layer l.

    The experts' weights end as [len(owned[l]), ...]; all values are bit-equal to those of `from_pretrained`. Raises
    `UserError` where the checkpoint lacks a tensor or has one of a wrong shape.
    """
    stored = read_tensors(path)
    target_of = _targets(model, stored)
    _check_experts(layers, path, stored, target_of)
    keep_experts(layers, owned)
    owned_of = {layer.name: experts for layer, experts in zip(layers, owned, strict=True)}
    with ExitStack() as stack:
        files = {file: stack.enter_context(safe_open(file, "pt")) for file in {t.file for t in stored.values()}}
        tensors: dict[str, Any] = {}
        for name, target in target_of.items():
            lazy = files[stored[name].file].get_slice(name)
            experts, number = owned_of.get(target.rpartition(".")[0]), _number(name)
            if experts is None:
                tensors[name] = lazy
            elif not experts:  # transformers wants a value for every weight, also for one without rows
                tensors[target] = torch.empty_like(model.get_parameter(target), device="cpu")
            elif number is None:
                tensors[name] = _Rows(lazy, experts)
            elif number in experts:
                tensors[name] = lazy
        _convert(model, path, tensors, stored, target_of)


class _Rows:
    """Some rows of a fused tensor, read when transformers asks for all of it."""

    def __init__(self, lazy: Any, rows: Sequence[int]) -> None:
        self.lazy, self.rows = lazy, rows

    def __getitem__(self, everything: EllipsisType) -> torch.Tensor:
        return torch.stack([self.lazy[row] for row in self.rows])


def _number(name: str) -> int | None:
    found = EXPERT_NUMBER.search(name)
    return int(found.group()) if found else None


def _targets(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """Checkpoint tensor -> the weight of the model that it becomes (the first, where it is split over several)."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    prefix, weights = model.base_model_prefix, model.state_dict()
    targets = {}
    for name in sorted(names, key=dot_natural_key):
        targets[name], _ = rename_source_key(name, renamings, converters, prefix, weights)
        if targets[name] not in weights and name in weights:
            targets[name], _ = rename_source_key(name, [], [], prefix, weights)
    return targets


def _check_experts(
    layers: tuple[MoELayer, ...], path: Path, stored: dict[str, StoredTensor], target_of: dict[str, str]
) -> None:
    """Every expert's tensors are there, and those of one weight have one shape; or `UserError`."""
    sources: dict[str, list[str]] = defaultdict(list)
    for name, target in target_of.items():
        sources[target].append(name)
    for layer in layers:
        count = f"config.json says that a layer has {layer.num_experts} experts"
        for target in (f"{layer.name}.{weight}" for weight in expert_weights(layer.experts)):
            names = sources[target]
            if not names:
                raise UserError(f"{path}: tensor {target} is missing, whole or by expert: {ADVICE}")
            for kind in sorted({EXPERT_NUMBER.sub("{}", name) for name in names if _number(name) is not None}):
                for name in map(kind.format, range(layer.num_experts)):
                    if name not in stored:
                        raise UserError(f"{_home(path, name)}: tensor {name} is missing: {ADVICE}")
            usual = mode(stored[name].shape for name in names)
            for name in names:
                where, shape, number = f"{stored[name].file}: tensor {name}", stored[name].shape, _number(name)
                if number is None and shape[:1] != (layer.num_experts,):
                    raise UserError(f"{where} has shape {shape}, but {count}: {ADVICE}")
                if number is not None and number >= layer.num_experts:
                    raise UserError(f"{where} is one too many: {count}: {ADVICE}")
                if shape != usual:
                    raise UserError(f"{where} has shape {shape}, expected {usual} like the others: {ADVICE}")


def _home(path: Path, name: str) -> Path:
    """The file that should hold a tensor, as far as the index tells."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return path / "model.safetensors"
    return path / json.loads(index.read_text())["weight_map"].get(name, index.name)


def _convert(
    model: PreTrainedModel,
    path: Path,
    tensors: dict[str, Any],
    stored: dict[str, StoredTensor],
    target_of: dict[str, str],
) -> None:
    """What `from_pretrained` does once it has opened the files, with every misfit refused."""

    def where(target: str) -> str:
        source = next((name for name, its in target_of.items() if its == target), None)
        return f"{stored[source].file}: tensor {source}" if source else f"{path}: tensor {target}"

    dtype = model.config.dtype
    assert isinstance(dtype, torch.dtype)
    load_config = LoadStateDictConfig(
        pretrained_model_name_or_path=str(path),
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),
        weight_mapping=get_model_conversion_mapping(model),  # type: ignore[arg-type]  # narrower than what it takes
    )
    info, _ = convert_and_load_state_dict_in_model(model, tensors, load_config)
    for target, found, expected in sorted(info.mismatched_keys):
        raise UserError(f"{where(target)} gives {target} of {tuple(found)}, expected {tuple(expected)}: {ADVICE}")
    for target, error in sorted(info.conversion_errors.items()):
        raise UserError(f"{where(target)} cannot become {target}: {error.splitlines()[0]}: {ADVICE}")
    for target in sorted(_missing(model, info)):
        raise UserError(f"{_home(path, target)}: tensor {target} is missing: {ADVICE}")
    model._finalize_model_loading(model, load_config, info)


def _missing(model: PreTrainedModel, info: Any) -> set[str]:
    """Weights without a value, but for those tied to one that has a value and those that the family can do without."""
    info = copy.copy(info)
    model._adjust_missing_and_unexpected_keys(info)
    tied = model.all_tied_weights_keys
    given = {source for target, source in tied.items() if target not in info.missing_keys}
    return info.missing_keys - tied.keys() - given
