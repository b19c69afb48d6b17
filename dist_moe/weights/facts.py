"""Facts about a training run. The index of trained experts has all of them, a model card and a delta a part."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval

from dist_moe.artefacts import checked
from dist_moe.ranges import Trains
from dist_moe.rules import Rule, from_facts
from dist_moe.stats.measured import Group


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """How many selections of an expert have a risk_diff above 0, below 0, and of exactly 0."""

    above_0: int
    below_0: int
    of_0: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Arms:
    """Number of prompts of each label."""

    safe: int
    unsafe: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """Where masks come from."""

    masks_digest: str
    """Of their store."""
    selection_rule: dict[str, Any]
    """Name and parameters, as `dist_moe.rules.Rule.facts`."""
    counted_tokens: str
    chosen: Numbers
    """All choices of an expert for a batch, that is of the masks, by the sign of risk_diff."""

    @property
    def rule(self) -> Rule:
        return from_facts(self.selection_rule, "the run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision(Selected):
    """Other masks that the run has gone on with after some step."""

    after_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFacts(Selected):
    """Those that may be told outside of the run: names and hashes, no paths of the machine it ran on.

    What is said of masks here is of those that the run has begun with.
    """

    dist_moe_version: str
    model_hash: str
    model_repository: str | None = None
    """The hub's repository that the base model was downloaded from."""
    model_commit: str | None = None
    """And the commit that it was at."""
    data_hash: str
    mask_revisions: list[Revision] = field(default_factory=list)
    """Later masks, in order."""
    batches: dict[str, int]
    """Number of batches of each category."""
    prompts: Arms
    """Of all batches together."""
    mode: Literal["route", "update"]
    fill: str
    scope: str
    trains: Trains = "experts"
    """The setting train.trains: what was trained."""
    rounds: list[str] = field(default_factory=list)
    """The setting train.rounds: when."""
    num_steps: int
    union: list[tuple[int, int]]
    """(layer, expert) of the experts that at least one batch could train."""
    num_union_parameters: int
    """Parameters of these experts."""
    num_dense_parameters: int = 0
    """Parameters of the dense weights that could be trained."""
    num_parameters: Annotated[int, Ge(1)]
    """Parameters of the whole model."""

    def require_rules(self, what: str) -> None:
        """Raises `UserError` if one of the rules is none that there is; `what` says where they stand."""
        for masks in (self, *self.mask_revisions):
            from_facts(masks.selection_rule, what)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts(TrainingFacts):
    """All facts."""

    model_path: str
    tokenizer_hash: str
    settings: dict[str, Any]
    """The settings that determine the result, by dotted key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quoted:
    """An evaluation of the exported experts."""

    groups: list[Group]
    """All rows of each kind, and those of each category."""
    data_hash: str
    files: list[str]
    """Names of the files whose rows they are."""
    is_compared: bool
    """Whether the rows were looked for among those of the training."""
    near_equal: float
    """Similarity from which on two prompts count as the same."""
    judge: str
    """Who says what a refusal is: name, and in words."""
    max_new_tokens: int
    """The longest answer that it was shown."""
    resamples: int
    seed: int
    """Of the intervals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts(TrainingFacts):
    """The facts in a delta, as JSON; unknown keys are ignored."""

    model_name: str
    num_trained_experts: int
    num_dense_tensors: int = 0
    """Tensors of dense weights that were changed."""
    evaluation: Quoted | None
    alpha: Annotated[float, Interval(ge=0, le=1)] = 1.0
    """Share of the trained experts' change that is in the weights: base + alpha * (trained - base)."""
    base_routers: bool = False
    """Whether routers that were trained are as in the base again."""

    @classmethod
    def of(
        cls,
        run: RunFacts,
        model_name: str,
        num_trained_experts: int,
        num_dense_tensors: int,
        evaluation: Quoted | None,
        alpha: float,
        base_routers: bool,
    ) -> Facts:
        told = {field.name: getattr(run, field.name) for field in fields(TrainingFacts)}
        return cls(
            **told,
            model_name=model_name,
            num_trained_experts=num_trained_experts,
            num_dense_tensors=num_dense_tensors,
            evaluation=evaluation,
            alpha=alpha,
            base_routers=base_routers,
        )

    @classmethod
    def parse(cls, value: object, what: str, advice: str) -> Facts:
        """From plain values.

        Raises:
            UserError: a fact is missing or of the wrong type, or the rule does not exist.
        """
        facts = checked(cls, value, what, advice)
        facts.require_rules(what)
        return facts
