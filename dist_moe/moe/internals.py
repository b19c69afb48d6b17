"""Everything that this package uses of transformers beyond its public API.

Names here may change with any release. Versions outside the tested ones give one warning; `dist-moe families` tests
what works.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    Transpose,
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
    revert_weight_conversion,
)
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, _default_apply_gate
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import LoadStateDictConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dist_moe.errors import UntestedVersionWarning, UserError
from dist_moe.tested import TESTED, is_tested

INTERFACE = ("is_transposed", "is_concatenated", "has_gate", "has_bias", "_apply_gate")
"""Attributes that transformers' experts interface (`use_experts_implementation`) sets on a module."""
CHOOSES_TOKENS = re.compile(r"\w+(Indexer|Compressor)")
"""Class names of sparse-attention modules whose result depends on where in a padded row the tokens stand.

The indexers of DeepSeek-V3.2 and similar families score a token by a sum of ReLUs, so many tokens score exactly 0, and
which of these `torch.topk` takes depends on the padded length. Those of MiniMax-M3 and DeepSeek-V4 divide the padded
row into blocks at fixed positions.
"""
PADDING_PROOF = {"Qwen4ExpTextQSAIndexer"}
"""An exception: it chooses among the tokens that the attention mask allows, counted from the first of them."""

__all__ = ["Concatenate", "Transpose", "WeightConverter", "WeightRenaming"]  # what adapters are written with
default_apply_gate = _default_apply_gate
"""act(gate) * up: what an experts module computes between its two linear maps, unless its family overrides it."""
SILU = type(ACT2FN["silu"])
Conversion = WeightRenaming | WeightConverter


@cache
def warn_if_untested() -> None:
    """Warn once per process if the version of transformers is outside the tested ones."""
    tested = TESTED["transformers"]
    if not is_tested(transformers.__version__, tested):
        warnings.warn(
            f"transformers {transformers.__version__}: tested with {tested[0]} to {tested[1]}; "
            "`dist-moe families` tells what works with this one",
            UntestedVersionWarning,
            stacklevel=2,
        )


def causal_lm_types() -> list[str]:
    """The model types that `AutoModelForCausalLM` supports; imports no model code."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def is_experts(module: nn.Module) -> bool:
    """Whether a module has transformers' experts interface."""
    return all(hasattr(module, name) for name in INTERFACE)


def is_decoder_layer(module: nn.Module) -> bool:
    """Whether a module is a whole decoder layer."""
    return isinstance(module, GradientCheckpointingLayer)


def must_be_alone(model: nn.Module) -> bool:
    """Whether padding changes what a model computes for a row, so that each row needs a forward pass of its own."""
    kinds = {type(module).__name__ for module in model.modules()}
    return any(map(CHOOSES_TOKENS.fullmatch, kinds - PADDING_PROOF))


def apply_gate(experts: nn.Module, pre: torch.Tensor) -> torch.Tensor:
    """What an experts module computes between its two linear maps, row by row: [n, 2I] -> [n, I], or [n, I] -> [n,
    I]."""
    name = "_apply_gate" if experts.has_gate else "act_fn"
    result: torch.Tensor = getattr(experts, name)(pre)
    return result


def is_swiglu(experts: nn.Module) -> bool:
    """Whether what `apply_gate` computes is silu(gate) * up, with gate and up side by side."""
    method = getattr(experts._apply_gate, "__func__", None)
    return bool(experts.has_gate) and method is _default_apply_gate and isinstance(experts.act_fn, SILU)


def named_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of an experts module, by the names of the interface."""
    return dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)) | kwargs


def use_experts(model: PreTrainedModel, name: str, function: Callable[..., torch.Tensor]) -> None:
    """Make all experts modules of a model call `function(module, hidden, top_k_index, top_k_weights)`."""
    ALL_EXPERTS_FUNCTIONS.register(name, function)
    model.set_experts_implementation(name)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Recompute each decoder layer's activations in the backward pass instead of keeping them.

    transformers does so only for layers in training mode. Only the layers' own flag is set, so dropout and router noise
    stay off. The hook with which transformers makes inputs require gradients is removed.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"train.activation_checkpointing: transformers has none for model type '{model.config.model_type}': "
            "set it to false"
        )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.disable_input_require_grads()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.training = True


@contextmanager
def without_checkpointing(model: PreTrainedModel) -> Iterator[None]:
    """Context manager for forward passes without gradients: a layer that recomputes its activations keeps no cache of
    keys and values, and answers would be generated from their last token alone."""
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer) and layer.training]
    for layer in layers:
        layer.training = False
    try:
        yield
    finally:
        for layer in layers:
            layer.training = True


class WeightConversion:
    """How the tensors of one checkpoint become the weights of a model, and back, by transformers' own rules.

    `target_of`: checkpoint tensor -> the model weight that it becomes (the first one, if it is split). `split`: such a
    first weight -> all weights made from the same tensors. `unchanged`: tensors that become a weight without any change
    but of their name.
    """

    def __init__(self, model: PreTrainedModel, names: Iterable[str], own: Sequence[Conversion] = ()) -> None:
        """`names` are the tensors of the checkpoint; `own` are conversions that take precedence over transformers'."""
        self.model, self._names = model, frozenset(names)
        self._rules = [*own, *get_model_conversion_mapping(model)]
        renamings = [rule for rule in self._rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in self._rules if isinstance(rule, WeightConverter)]
        targets_of = {source: rule.target_patterns for rule in converters for source in rule.source_patterns}
        prefix, weights = model.base_model_prefix, model.state_dict()
        self.target_of: dict[str, str] = {}
        self.split: dict[str, list[str]] = {}
        self.unchanged: set[str] = set()
        for name in sorted(self._names, key=dot_natural_key):
            target, converter = rename_source_key(name, renamings, converters, prefix, weights)
            if target not in weights and name in weights:
                target, converter = rename_source_key(name, [], [], prefix, weights)
            self.target_of[name] = target
            if converter is None:
                self.unchanged.add(name)
            else:
                first, *_ = names = targets_of[converter]
                self.split[target] = [target.replace(first, other) for other in names]
        # as from_pretrained leaves it: the way back takes only the rules that this checkpoint needs
        model._weight_conversions = [rule for rule in self._rules if rule.was_used()]  # type: ignore[assignment]

    def unused(self) -> dict[str, str]:
        """Tensors that no weight takes -> their names in the model; without those that the family leaves out."""
        weights = self.model.state_dict()
        names = {name: target for name, target in self.target_of.items() if target not in weights}
        info = SimpleNamespace(missing_keys=set(), unexpected_keys=set(names.values()))
        self.model._adjust_missing_and_unexpected_keys(info)  # type: ignore[arg-type]  # it needs no more than these two
        return {name: target for name, target in names.items() if target in info.unexpected_keys}

    def missing(self) -> set[str]:
        """Weights for which there is no tensor; without those that the family does not need or that are tied."""
        given = {part for target in self.target_of.values() for part in self.split.get(target, [target])}
        return self._missing(
            SimpleNamespace(missing_keys=self.model.state_dict().keys() - given, unexpected_keys=set())
        )

    def to_checkpoint(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert weights by model names to tensors by checkpoint names. Any number of experts, counted from 0."""
        tensors: dict[str, torch.Tensor] = revert_weight_conversion(self.model, weights)
        return {self._stored_name(name): tensor for name, tensor in tensors.items()}

    def dense_to_checkpoint(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Convert dense weights by model names to the checkpoint's tensors; one that is tied to them is among these."""
        tied: dict[str, str] = self.model.all_tied_weights_keys
        others = {target: weights[source] for target, source in tied.items() if source in weights}
        tensors = self.to_checkpoint({**others, **weights})
        found = {name: tensor for name, tensor in tensors.items() if name in self._names}
        missing = weights.keys() - {part for n in found for t in [self.target_of[n]] for part in self.split.get(t, [t])}
        missing -= {source for target, source in tied.items() if any(self.target_of[n] == target for n in found)}
        assert not missing, f"{min(missing)} is in no tensor of the checkpoint"
        return found

    def _stored_name(self, name: str) -> str:
        """The name with the checkpoint's use of the base model's prefix, which only loading adds or removes."""
        prefix = f"{self.model.base_model_prefix}."
        return next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in self._names), name)

    def load(self, path: Path, tensors: dict[str, Any], where: Callable[[str], str], advice: str) -> None:
        """Fill the model as `from_pretrained` does after opening the files, but refuse everything that does not fit.

        `tensors` are lazy slices by checkpoint name; `where` gives file and tensor of a weight, for messages.
        """
        dtype = self.model.config.dtype
        assert isinstance(dtype, torch.dtype)
        config = LoadStateDictConfig(
            pretrained_model_name_or_path=str(path),
            dtype=dtype,
            dtype_plan=self.model._get_dtype_plan(dtype),
            weight_mapping=self._rules,  # type: ignore[arg-type]  # narrower than what it takes
        )
        info, _ = convert_and_load_state_dict_in_model(self.model, tensors, config)
        for target, found, expected in sorted(info.mismatched_keys):
            raise UserError(f"{where(target)} gives {target} of {tuple(found)}, expected {tuple(expected)}: {advice}")
        for target, error in sorted(info.conversion_errors.items()):
            reason = error.split("\nError")[0].splitlines()[-1]  # a traceback, the exception's text, where it happened
            raise UserError(f"{where(target)} cannot become {target}: {reason}: {advice}")
        for target in sorted(self._missing(info)):
            raise UserError(f"{where(target)} is missing: {advice}")
        self.model._finalize_model_loading(self.model, config, info)

    def _missing(self, info: Any) -> set[str]:
        """Weights without a value; without those that the family does not need or that are tied to one with a value."""
        info = copy.copy(info)
        self.model._adjust_missing_and_unexpected_keys(info)
        tied: dict[str, str] = self.model.all_tied_weights_keys
        given = {source for target, source in tied.items() if target not in info.missing_keys}
        return set(info.missing_keys - tied.keys() - given)
