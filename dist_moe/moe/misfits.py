"""Refuses what in a checkpoint does not fit the model that its config.json describes, with tensor, file and advice.

All functions but `refuse_not_finite` look only at names, types and shapes in headers. So every rank refuses the same,
and so does every command that reads no weights.
"""

from __future__ import annotations

import re
from collections import defaultdict
from math import prod
from pathlib import Path
from statistics import mode

import torch
from transformers import PreTrainedModel

from dist_moe.errors import UserError
from dist_moe.moe.bank import expert_weights
from dist_moe.moe.discover import MoELayer
from dist_moe.moe.internals import WeightConversion
from dist_moe.weights.configuration import ADVICE
from dist_moe.weights.directory import CONFIG, EXPERT_NUMBER, StoredTensor, expert_number, read_json, weight_files
from dist_moe.weights.expert_tensors import HubTensor
from dist_moe.weights.finite import is_finite
from dist_moe.weights.values import DTYPES, finite

NEXT_TOKENS = re.compile(r"(^|[._])mtp([._]|$)")
"""Part of the names of multi-token-prediction tensors, for which no model class has a place."""
NEXT_TOKENS_LAYER = re.compile(r"^(.*\.layers\.\d+\.)eh_proj\.weight$")
"""Tensor by which a multi-token-prediction layer is recognised, if it is stored as a layer beyond those of
config.json."""


def refuse_misfits(
    model: PreTrainedModel,
    layers: tuple[MoELayer, ...],
    path: Path,
    stored: dict[str, StoredTensor],
    conversion: WeightConversion,
) -> None:
    """Refuse what transformers would only warn of, or not notice, when it fills `model` from the tensors `stored`.

    Raises:
        UserError: a tensor that no weight takes; a tensor of a type that cannot be trained, for a floating-point
            weight; a tensor of the wrong shape; or a missing tensor of an expert.
    """
    _refuse_unused(model, path, stored, conversion)
    weights = model.state_dict()
    for name, target in conversion.target_of.items():
        weight, tensor = weights.get(target), stored[name]
        if weight is not None and weight.is_floating_point() and tensor.dtype not in DTYPES:
            raise UserError(
                f"{tensor.file}: tensor {name} is of type {tensor.dtype}, which cannot be trained: expected one of "
                f"{', '.join(DTYPES)}: use a checkpoint that is not quantized"
            )
    _check_experts(layers, path, stored, conversion.target_of)
    for target in sorted(conversion.missing()):
        raise UserError(f"{where(path, stored, conversion.target_of, target)} is missing: {ADVICE}")
    with_more = {f"{x.name}.{weight}" for x in layers if x.num_null_experts for weight in expert_weights(x.experts)}
    sources: dict[str, list[str]] = defaultdict(list)
    for name, target in conversion.target_of.items():
        if target in weights and target not in with_more:
            sources[target].append(name)
    for target, names in sources.items():
        _check_size(weights, stored, conversion, target, names)


def _check_size(
    weights: dict[str, torch.Tensor],
    stored: dict[str, StoredTensor],
    conversion: WeightConversion,
    target: str,
    names: list[str],
) -> None:
    """Check that the tensors of a weight have its shape or, if they are combined or transposed, as many values."""
    first, shape = stored[names[0]], tuple(weights[target].shape)
    if names[0] in conversion.unchanged and first.shape != shape:
        raise UserError(f"{first.file}: tensor {names[0]} has shape {first.shape}, expected {shape}: {ADVICE}")
    found = sum(prod(stored[name].shape) for name in names)
    expected = sum(weights[part].numel() for part in conversion.split.get(target, [target]) if part in weights)
    if found != expected:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        raise UserError(
            f"{first.file}: tensor {names[0]}{more}: {found} values in all for {target}, expected {expected}: {ADVICE}"
        )


def _refuse_unused(
    model: PreTrainedModel, path: Path, stored: dict[str, StoredTensor], conversion: WeightConversion
) -> None:
    """Refuse a tensor without a weight, unless the family leaves it out, it is for multi-token prediction, or
    belongs to another part of a multimodal model."""
    unused = conversion.unused()
    if not unused:
        return
    next_layers = tuple(match[1] for name in stored if (match := NEXT_TOKENS_LAYER.match(name)))
    composite = "text_config" in read_json(path / CONFIG)
    left = [
        name
        for name, target in unused.items()
        if not (NEXT_TOKENS.search(name) or name.startswith(next_layers) or (composite and _elsewhere(model, target)))
    ]
    if left:
        more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        num_layers = model.config.get_text_config().num_hidden_layers
        raise UserError(
            f"{stored[left[0]].file}: tensor {left[0]}{more} belongs to no weight of the model that {path / CONFIG} "
            f"describes (num_hidden_layers: {num_layers}): correct config.json, or save the model again without it"
        )


def _elsewhere(model: PreTrainedModel, target: str) -> bool:
    """Whether a name belongs to a part (vision, audio) that this model does not have at all."""
    modules, at = dict(model.named_modules()), target
    while at not in modules:
        at = at.rpartition(".")[0]
    return at in ("", model.base_model_prefix)


def _check_experts(
    layers: tuple[MoELayer, ...], path: Path, stored: dict[str, StoredTensor], target_of: dict[str, str]
) -> None:
    """Check that every expert's tensors are present, and that those of one weight have the same shape."""
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
                rows = HubTensor.of(layer.index, name, stored[name], num_dims, layer.num_experts).rows or 1
                lengths = [(rows * layer.num_experts,), (rows * (layer.num_experts + layer.num_null_experts),)]
                if number is None and shape[:1] not in lengths:
                    raise UserError(f"{where} has shape {shape}, but {count}: {ADVICE}")
                if number is not None and number >= layer.num_experts + layer.num_null_experts:
                    raise UserError(f"{where} is one too many: {count}: {ADVICE}")
                if shape != usual:
                    raise UserError(f"{where} has shape {shape}, expected {usual} like the others: {ADVICE}")


def refuse_not_finite(model: PreTrainedModel, stored: dict[str, StoredTensor], target_of: dict[str, str]) -> None:
    """Refuse NaN and infinity in the weights that this process has loaded; one pass over them.

    Raises:
        UserError: names the first tensor with such a value; or the weight, if a value does not fit the type to which it
            was converted.
    """
    for target, weight in model.state_dict().items():
        if target in model.all_tied_weights_keys or finite(weight):
            continue
        for name in (name for name, its in target_of.items() if its == target):
            tensor = stored[name]
            if not is_finite(tensor.bytes(), tensor.dtype):
                raise UserError(f"{tensor.file}: tensor {name} has a value that is NaN or infinite: {ADVICE}")
        raise UserError(
            f"{target}: a value of the checkpoint is infinite as {weight.dtype}: choose another model.dtype"
        )


def where(path: Path, stored: dict[str, StoredTensor], target_of: dict[str, str], target: str) -> str:
    """File and tensor that give a weight, or should; for messages."""
    source = next((name for name, its in target_of.items() if its == target), None)
    return f"{stored[source].file}: tensor {source}" if source else f"{_home(path, target)}: tensor {target}"


def _home(path: Path, name: str) -> Path:
    """The file that should hold a tensor, as far as the index says."""
    files = weight_files(path)
    return path / (files.shards[0] if files.index is None else files.weight_map.get(name, files.index))
