"""Read a checkpoint into a model that holds one rank's experts only: what a rank does not own, it does not read.

The model is built on the meta device, where it costs nothing; its experts modules are cut to the owned rows; then
transformers' own weight conversion fills it from lazy slices of the shards. So a family that transformers can load is a
family that is loaded here, with one tensor an expert on disk or with fused ones. Facts to know:

- The dense weights stay mapped to the files, as in `from_pretrained`; the experts' are copies, which may be written.
- Every rank checks all experts' names and shapes in the shards' headers: a bad checkpoint fails on all ranks alike.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import mode
from types import EllipsisType
from typing import Any

import torch
import transformers
from safetensors import safe_open
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from dist_moe.errors import UserError
from dist_moe.moe.adapters.adapt import adapt, own_conversions
from dist_moe.moe.bank import expert_weights
from dist_moe.moe.checkpoint import (
    DTYPES,
    EXPERT_NUMBER,
    Row,
    StoredTensor,
    expert_number,
    expert_row,
    read_tensors,
    rows_per_expert,
)
from dist_moe.moe.discover import MoELayer
from dist_moe.moe.internals import WeightConversion, warn_if_untested

ADVICE = "copy or download the checkpoint again, or correct its config.json"


def empty_model(path: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The whole model of a checkpoint on the meta device: every shape, no value. No dtype: the checkpoint's."""
    warn_if_untested()
    config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    _check_supported(config, path / "config.json")
    if dtype is None:
        dtype = config.dtype or next(DTYPES[t.dtype] for t in read_tensors(path).values() if t.dtype in DTYPES)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path, local_files_only=True)
    adapt(model)
    return model.eval()


def _check_supported(config: PreTrainedConfig, file: Path) -> None:
    """Refuse by name what no model can be built of, or none that trains."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"{file}: model type '{config.model_type}' is not supported: transformers {transformers.__version__} "
            "has no causal language model for it: point model.path at an MoE checkpoint that AutoModelForCausalLM reads"
        )
    for part in (config, config.get_text_config()):
        quantization = getattr(part, "quantization_config", None)
        if quantization is None:
            continue
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        packed = f"{file}: quantization_config: weights packed as {str(method).upper()} cannot be trained: "
        if method == "mxfp4":
            raise UserError(
                f"{packed}unpack them once: from_pretrained(..., quantization_config=Mxfp4Config(dequantize=True)), "
                "then save_pretrained"
            )
        raise UserError(f"{packed}use a checkpoint that is not quantized")


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
    conversion = WeightConversion(model, stored, own_conversions(model))
    target_of = conversion.target_of
    _check_experts(layers, path, stored, target_of)
    keep_experts(layers, owned)
    owned_of = {layer.name: (layer, experts) for layer, experts in zip(layers, owned, strict=True)}
    with ExitStack() as stack:
        files = {file: stack.enter_context(safe_open(file, "pt")) for file in {t.file for t in stored.values()}}
        tensors: dict[str, Any] = {}
        for name, target in target_of.items():
            lazy = files[stored[name].file].get_slice(name)
            layer, experts = owned_of.get(target.rpartition(".")[0], (None, ()))
            number = expert_number(name)
            if layer is None:
                tensors[name] = lazy
            elif not experts:  # transformers wants a value for every weight, also for one without rows
                tensors[target] = torch.empty_like(model.get_parameter(target), device="cpu")
            elif number is None:
                rows = rows_per_expert(stored[name], model.get_parameter(target).dim(), layer.num_experts)
                tensors[name] = _Rows(lazy, [expert_row(expert, rows) for expert in experts])
            elif number in experts:
                tensors[name] = lazy
        conversion.load(path, tensors, partial(_where, path, stored, target_of), ADVICE)


class _Rows:
    """Some rows of a fused tensor, read when transformers asks for all of it."""

    def __init__(self, lazy: Any, rows: Sequence[Row]) -> None:
        self.lazy, self.rows = lazy, rows

    def __getitem__(self, everything: EllipsisType) -> torch.Tensor:
        return torch.stack([self.lazy[row] for row in self.rows])


def _where(path: Path, stored: dict[str, StoredTensor], target_of: dict[str, str], target: str) -> str:
    """The file and the tensor that give a weight, or should."""
    source = next((name for name, its in target_of.items() if its == target), None)
    return f"{stored[source].file}: tensor {source}" if source else f"{_home(path, target)}: tensor {target}"


def _check_experts(
    layers: tuple[MoELayer, ...], path: Path, stored: dict[str, StoredTensor], target_of: dict[str, str]
) -> None:
    """Every expert's tensors are there, and those of one weight have one shape; or `UserError`."""
    sources: dict[str, list[str]] = defaultdict(list)
    for name, target in target_of.items():
        sources[target].append(name)
    for layer in layers:
        count = f"config.json says that a layer has {layer.num_experts} experts"
        for weight in expert_weights(layer.experts):
            target, num_dims = f"{layer.name}.{weight}", layer.experts.get_parameter(weight).dim()
            names = sources[target]
            if not names:
                raise UserError(f"{path}: tensor {target} is missing, whole or by expert: {ADVICE}")
            for kind in sorted({EXPERT_NUMBER.sub("{}", name) for name in names if expert_number(name) is not None}):
                for name in map(kind.format, range(layer.num_experts)):
                    if name not in stored:
                        raise UserError(f"{_home(path, name)}: tensor {name} is missing: {ADVICE}")
            usual = mode(stored[name].shape for name in names)
            for name in names:
                where, shape, number = f"{stored[name].file}: tensor {name}", stored[name].shape, expert_number(name)
                rows = rows_per_expert(stored[name], num_dims, layer.num_experts) or 1
                lengths = [(rows * layer.num_experts,), (rows * (layer.num_experts + layer.num_null_experts),)]
                if number is None and shape[:1] not in lengths:
                    raise UserError(f"{where} has shape {shape}, but {count}: {ADVICE}")
                if number is not None and number >= layer.num_experts + layer.num_null_experts:
                    raise UserError(f"{where} is one too many: {count}: {ADVICE}")
                if shape != usual:
                    raise UserError(f"{where} has shape {shape}, expected {usual} like the others: {ADVICE}")


def _home(path: Path, name: str) -> Path:
    """The file that should hold a tensor, as far as the index tells."""
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return path / "model.safetensors"
    return path / json.loads(index.read_text())["weight_map"].get(name, index.name)
