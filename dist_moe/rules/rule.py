"""What a selection rule is, and how it is read back from the facts that are stored of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from dist_moe.errors import UserError, shown
from dist_moe.registry import Registry, require_values
from dist_moe.stats.evidence import Evidence

Need = Literal["gates", "gradients", "population", "union", "tests", "draws"]
"""gates, gradients: a table of this name beside the counts. population: what is known of all batches.
union: among it, the experts that `counted_as` takes of any batch. tests: permuted
labels. draws: random numbers, from the run's seed. The counts and labels of the batch itself every rule has."""

Other = TypeVar("Other", bound="Rule")


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """One way to choose a batch's unsafe experts. The fields of a subclass are its parameters, all that it reads."""

    name: ClassVar[str]
    """In the configuration, in stores and on cards."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    is_control: ClassVar[bool] = False
    """Whether the rule is there to be compared with, and not to find unsafe experts."""
    has_null: ClassVar[bool] = True
    """Whether the number of experts follows from the batch's labels, so that it can be compared with that of permuted
    ones. It does not where the number is fixed, or where other batches' labels are part of it."""

    @abstractmethod
    def select(self, batch: Evidence) -> np.ndarray:
        """The experts that the rule calls unsafe for the batch, bool [L, E]; there may be none. Ties go to the lower
        layer, then to the lower expert."""

    @property
    @abstractmethod
    def in_words(self) -> str:
        """Which experts of a batch the rule takes, one phrase with its parameters: for a table, a log, a card."""

    @property
    def counted_as(self) -> Rule:
        """The rule that says how many experts this one takes; only a control has another than itself."""
        return self

    def stability(self, batch: Evidence) -> np.ndarray:
        """Share of half-samples in which the rule selects each expert, float64 [L, E]; 0 where an arm has one prompt.

        Runs the rule on every half-sample; one for which that is too slow, or says nothing, has another way.
        """
        return batch.frequency_of_LE(self.select)

    def none_selected(self, largest_risk_diff: float, num_batches: int) -> str:
        """What to say where no batch has an expert; `largest_risk_diff` is that of any expert of any batch."""
        return (
            f"analysis.rule = {self.name} selects no expert in any of {num_batches} batches: make its parameters less "
            "strict (see docs/statistics.md), use larger batches, or choose another rule"
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The rule as JSON values: its name and its parameters, and no more."""
        return {"name": self.name, **asdict(self)}

    def like(self, other: type[Other]) -> Other:
        """Another rule, with the parameters that both have; the others are its defaults."""
        own = asdict(self)
        return other(**{field.name: own[field.name] for field in fields(other) if field.name in own})

    def __post_init__(self) -> None:
        """Raises UserError: a parameter is of another type, or out of its range."""
        require_values(self)


RULES: Registry[Rule] = Registry("selection rule", "dist_moe.rules")


class OfDifference(Rule):
    """A rule that looks at a difference [L, E] alone."""

    @abstractmethod
    def choose(self, diff_LE: np.ndarray) -> np.ndarray:
        """The experts that it takes, bool [L, E]."""

    def select(self, batch: Evidence) -> np.ndarray:
        return self.choose(batch.risk_diff_LE)

    def stability(self, batch: Evidence) -> np.ndarray:
        """Of the difference that `statistics.estimate` names, for all half-samples at once."""
        return batch.frequency_LE(self.choose)


def from_facts(facts: Mapping[str, Any], where: str) -> Rule:
    """The rule whose `facts` were stored.

    Raises:
        UserError: they are no rule's; says `where` they stand.
    """
    name = facts.get("name")
    cls = RULES.get(name) if isinstance(name, str) else None
    if cls is None or set(facts) != {"name", *(field.name for field in fields(cls))}:
        raise UserError(f"{where}: its selection rule is {shown(dict(facts))}, which no rule of this version has")
    try:
        return cls(**{key: value for key, value in facts.items() if key != "name"})
    except UserError as error:
        raise UserError(f"{where}: its selection rule is wrong: {error}") from None


def require_experts(num_experts_B: np.ndarray, largest_risk_diff: float, rule: Rule) -> None:
    """A batch may have an empty mask; all batches may not.

    Args:
        num_experts_B: selected experts of each batch.
        largest_risk_diff: of any expert of any batch.
        rule: the one that has selected them.

    Raises:
        UserError: no expert of any batch is selected.
    """
    if not num_experts_B.any():
        raise UserError(rule.counted_as.none_selected(largest_risk_diff, len(num_experts_B)))
