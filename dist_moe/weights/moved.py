"""Values that say what differs between a base and a fine-tuned model; `dist_moe.weights.difference` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dist_moe.weights.sizes import Size


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedExpert:
    layer: int
    expert: int
    size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedTensor:
    """A tensor that is no expert's."""

    name: str
    """In the base's files; in the model's, if the base has none."""
    part: str
    """router | shared expert | attention | embedding | output layer | norm | dense layer | other | no weight"""
    size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part's tensors together, moved or not."""

    num_tensors: int
    """Those that were compared."""
    size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Reshaped:
    """A tensor of another shape, or of a type that cannot be compared."""

    name: str
    part: str
    before: str
    """Type and shape, such as `F32 [128, 32]`."""
    after: str
    num_compared: int
    """Rows that both have, and that were compared; 0: nothing was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A value in config.json or generation_config.json. None: it is not there."""

    file: str
    key: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What `difference` has found; all lists are empty, and all totals 0, where nothing differs."""

    base: str
    model: str
    num_layers: int
    num_experts: int
    """Routed experts in a layer."""
    experts: list[MovedExpert]
    """Those that have moved, by layer and number."""
    layers: list[Size]
    """Of each MoE layer's experts together."""
    tensors: list[MovedTensor]
    """Other tensors that have moved."""
    parts: dict[str, Part]
    reshaped: list[Reshaped]
    only_base: list[str]
    """Tensors that the other has not, nor one that they are tied to."""
    only_model: list[str]
    dtypes: dict[str, int]
    """Other data types, such as `BF16 -> F32`, and their numbers of tensors; of experts, of expert tensors of the
    base."""
    settings: list[Setting]
    files: list[str]
    """Other files that influence the model, such as the tokenizer's, that are not the same, or only in one of the
    two."""
    unread: list[str]
    """Weight files of the model that transformers does not read; they were not compared."""
