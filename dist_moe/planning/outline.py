"""Outline: a model as the numbers that a plan needs. Those of well-known models lie beside this file, so that planning
for these needs neither torch nor transformers; `dist_moe.planning.trace` finds them for any other model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dist_moe.weights.directory import read_json

MODELS = Path(__file__).with_name("models")
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class Cost:
    """Bytes of a forward pass of R rows of S positions: R * (token * S + pair * S * S)."""

    token: float
    pair: float = 0.0
    """Of two positions of a row: attention that is not fused, and masks."""

    def __call__(self, rows: int, length: int) -> float:
        return rows * (self.token * length + self.pair * length * length)


@dataclass(frozen=True, slots=True)
class Layers:
    """Some decoder layers in a row that cost the same."""

    number: int
    is_moe: bool
    kept: Cost
    """What one of them keeps for its backward pass, with every token of the pass at k experts of this rank, none of
    them trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Sizes of a model. `L` MoE layers of `E` routed experts, `k` of them for a token."""

    model_type: str
    dtype: str
    num_layers: int
    """L."""
    num_experts: int
    """E."""
    top_k: int
    """k."""
    hidden_size: int
    vocab_size: int
    num_parameters: int
    """Of the whole model."""
    expert_shapes: dict[str, list[int]]
    """Shape of each weight of one expert."""
    dense_bytes: int
    """Of all weights that are no expert's, and of stored buffers."""
    outside_bytes: int
    """Those of them outside of the decoder layers: embedding, output layer, last norm."""
    largest_layer_bytes: int
    """Those of them in the decoder layer that has most."""
    router_parameters: int
    """Of all MoE layers."""
    rows_alone: bool
    """Whether each row needs a forward pass of its own."""
    layers: list[Layers]
    """All decoder layers."""
    before: Cost
    """What is kept of the pass before the first layer."""
    spare: list[Cost]
    """What a pass holds for a while, in addition to what is kept: the largest of these."""
    spare_forward: float
    """What a forward pass without gradients holds at most, for each token, without logits."""

    @property
    def item_bytes(self) -> int:
        return ITEM_BYTES[self.dtype]

    @property
    def expert_parameters(self) -> int:
        """Of one expert."""
        return sum(prod(shape) for shape in self.expert_shapes.values())

    @property
    def expert_bytes(self) -> int:
        """Of one expert."""
        return self.expert_parameters * self.item_bytes

    @property
    def width(self) -> int:
        """Of what the experts compute between their two linear maps: I."""
        down = self.expert_shapes["down_proj"]
        return prod(down) // self.hidden_size

    @property
    def up_width(self) -> int:
        """Of what their first linear map gives: 2I with a gate, else I."""
        up = self.expert_shapes.get("gate_up_proj") or self.expert_shapes["up_proj"]
        return prod(up) // self.hidden_size

    @property
    def total_bytes(self) -> int:
        """Of the whole model."""
        return self.dense_bytes + self.num_layers * self.num_experts * self.expert_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A file of `models/`."""

    title: str
    published: str
    """How its weights are published: a data type, or a packed format, which has to be unpacked to be trained."""
    config: dict[str, Any]
    """What its config.json says about shapes."""
    outline: Outline


def known_names() -> list[str]:
    """Names of the models that are known without any file."""
    return sorted(file.stem for file in MODELS.glob("*.json"))


@cache
def known_model(name: str) -> KnownModel:
    """One of `known_names`."""
    text = (MODELS / f"{name}.json").read_bytes()
    found: KnownModel = TypeAdapter(KnownModel).validate_json(text)
    return found


def recognised(config_file: Path) -> KnownModel | None:
    """The known model with all the shapes that a config.json has; None: there is none."""
    said = read_json(config_file)
    for name in known_names():
        model = known_model(name)
        if all(said.get(key) == value for key, value in model.config.items()):
            return model
    return None


def as_json(model: KnownModel) -> str:
    """The text of a file of `models/`."""
    return json.dumps(TypeAdapter(KnownModel).dump_python(model), indent=1) + "\n"
