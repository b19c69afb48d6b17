"""What is known of a training run: from what its experts were trained, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """Of some choices of experts, how many have a risk_diff above 0, below 0, and of exactly 0."""

    above_0: int
    below_0: int
    of_0: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arms:
    """How many prompts of each label."""

    safe: int
    unsafe: int


@dataclass(frozen=True, slots=True)
class Revision:
    """Other masks that the run has gone on with after some step, and the digest of their store."""

    after_step: int
    masks_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFacts:
    """Those that may be told outside of the run: names and hashes, no paths of the machine it ran on."""

    dist_moe_version: str
    model_hash: str
    data_hash: str
    masks_digest: str
    """Of the masks that the run has begun with, like `selection_rule` and `chosen`."""
    mask_revisions: list[Revision] = field(default_factory=list)
    """Those that came later, in order."""
    selection_rule: dict[str, Any]
    """Name and parameters, as `dist_moe.rules.Rule.facts`."""
    counted_tokens: str
    batches: dict[str, int]
    """Number of batches of each category."""
    prompts: Arms
    """Of all batches."""
    chosen: Numbers
    """All choices of an expert for a batch, that is of the masks, by the sign of risk_diff."""
    mode: Literal["route", "update"]
    fill: str
    scope: str
    num_steps: int
    union: list[tuple[int, int]]
    """(layer, expert) of those that at least one batch could train."""
    num_union_parameters: int
    num_parameters: Annotated[int, Ge(1)]
    """Of the whole model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts(TrainingFacts):
    """All of them, as the index of trained experts has them."""

    model_path: str
    tokenizer_hash: str
    settings: dict[str, Any]
    """The settings that the result follows from, by their dotted keys."""
