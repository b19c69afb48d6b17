"""A tiny model of one family, with and without dist_moe's changes, and what both compute on the same tokens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from dist_moe.conformance.sizes import ALL_CONFIGS, VOCAB, build
from dist_moe.model.model import MoEModel, adopt
from dist_moe.moe.bank import train_from
from dist_moe.moe.discover import require_routers
from dist_moe.parallel.comm import SoloComm

T = TypeVar("T")
ROWS, LENGTH = 2, 12
COMM = SoloComm(torch.device("cpu"))


CLOSE = 1e-4
"""Tolerance for logits and gradients of whole models, relative to the largest value. Two orders of summation in
float32 differ a little, and the layers above the experts amplify that (most families stay below 1e-6)."""


class CheckError(AssertionError):
    """A check has failed."""


def require(holds: bool | torch.Tensor, what: str) -> None:
    """Raise `CheckError` unless `holds`."""
    if not holds:
        raise CheckError(what)


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results are equal up to rounding."""
    return bool((found - expected).abs().max() <= CLOSE * expected.abs().max())


class Specimen:
    """A tiny model of `model_type`; `plain`, `taken` and `trainable` make new copies with the same weights."""

    def __init__(self, model_type: str, path: Path, dtype: torch.dtype = torch.float32) -> None:
        """`path` is an empty directory for files."""
        self.model_type, self.path, self.dtype = model_type, path, dtype
        self._results: dict[Callable[[Specimen], Any], Any] = {}
        self.ids_RS = torch.randint(3, VOCAB - 3, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))

    @cached_property
    def _built(self) -> PreTrainedModel:
        return build(self.model_type, self.dtype)

    def plain(self) -> PreTrainedModel:
        """The model as transformers builds it, with eager experts."""
        return copy.deepcopy(self._built)

    def taken(self) -> MoEModel:
        """The model with its experts in banks."""
        return adopt(self.plain(), COMM)

    def trainable(self) -> MoEModel:
        """The model with its experts in banks, and a gradient buffer for each."""
        model = self.taken()
        train_from(model.layers, 0)
        for layer in model.layers:
            layer.grads = {slot: layer.layout.views(torch.zeros(layer.layout.size)) for slot in range(len(layer.local))}
        return model

    @cached_property
    def saved(self) -> Path:
        """The plain model, saved as a checkpoint in several shards."""
        path = self.path / "base"
        self.plain().save_pretrained(path, max_shard_size="100KB")
        if self._built.config.model_type != self.model_type:  # the text model of a composite configuration
            ALL_CONFIGS[self.model_type]().save_pretrained(path)
        return path

    def reloaded(self, path: Path) -> PreTrainedModel:
        """A checkpoint as plain transformers loads it; every tensor must be a weight, and every weight a tensor."""
        loaded: Any = AutoModelForCausalLM.from_pretrained(path, dtype=self.dtype, output_loading_info=True)
        model: PreTrainedModel = loaded[0]
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
            require(not loaded[1][what], f"{path.name} as from_pretrained reads it: {what} {list(loaded[1][what])[:3]}")
        return model

    def resaved(self, path: Path) -> Path:
        """A checkpoint as transformers saves it under the names that weights have in memory, in one shard."""
        model, again = self.reloaded(path), self.path / f"{path.name}-resaved"
        model.save_pretrained(again, save_original_format=False)
        (again / "config.json").write_bytes((path / "config.json").read_bytes())
        return again

    def once(self, function: Callable[[Specimen], T]) -> T:
        """`function(self)`, computed at its first call; only for results that are never changed."""
        if function not in self._results:
            self._results[function] = function(self)
        result: T = self._results[function]
        return result

    def can_route(self) -> None:
        """Raise the `UserError` of a family whose routing cannot be masked."""
        require_routers(self.plain())

    def logits(self, module: torch.nn.Module) -> torch.Tensor:
        """[R, S, V]."""
        result: torch.Tensor = module(input_ids=self.ids_RS, use_cache=False).logits
        return result

    def random_mask(self, model: MoEModel, num_allowed: int, seed: int = 5) -> torch.Tensor:
        """bool [L, E] with `num_allowed` experts in each layer."""
        generator = torch.Generator().manual_seed(seed)
        scores_LE = torch.rand(model.shape.num_layers, model.shape.num_experts, generator=generator)
        return scores_LE.argsort(1).argsort(1) < num_allowed


def experts_inputs(model: MoEModel, run: Any) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The inputs of each layer's experts while `run()` runs: hidden [T, H], experts [T, k], weights [T, k]."""
    seen: list[Any] = []

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = dict(zip(("hidden_states", "top_k_index", "top_k_weights"), args, strict=False)) | kwargs
        seen.append((named["hidden_states"], named["top_k_index"], named["top_k_weights"]))

    handles = [layer.module.register_forward_pre_hook(hook, with_kwargs=True) for layer in model.layers]
    run()
    for handle in handles:
        handle.remove()
    return seen


def counted(model: MoEModel, seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> np.ndarray:
    """Counts [L, E] of what the routers passed to the experts, in one pass after another."""
    counts_LE = np.zeros((model.shape.num_layers, model.shape.num_experts), np.int64)
    for i, (_, index_Tk, weights_Tk) in enumerate(seen):
        chosen = index_Tk[(index_Tk < model.shape.num_experts) & (weights_Tk != 0)]
        np.add.at(counts_LE[i % model.shape.num_layers], chosen.numpy(), 1)
    return counts_LE


def require_gradients(model: MoEModel, reference: PreTrainedModel, wrong: str) -> None:
    """Require that the experts' gradients are those of a plain model; `wrong` has places for a layer and a weight.

    Afterwards the plain model's weights are its gradients: taking it over lays them out as the banks are.
    """
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    for layer, right in zip(model.layers, adopt(reference, COMM).layers, strict=True):
        for name, gradient in right.bank.items():
            found = torch.stack([layer.grads[slot][name] for slot in range(len(layer.local))])
            require(close(found, gradient), wrong.format(layer.index, name))
