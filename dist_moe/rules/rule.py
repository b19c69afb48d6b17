"""The interface of selection rules, and how a rule is restored from the values stored about it."""

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
"""What a rule can need besides the counts and labels of its batch. gates, gradients: the table of this name.
population: sums over all batches. union: among these, the experts that `counted_as` selects for any batch. tests:
permutation tests. draws: random numbers, from the run's seed."""

Other = TypeVar("Other", bound="Rule")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unselected:
    """The batches of a mask set, at least one, that have no expert."""

    num_empty: int
    num_batches: int
    """Of the mask set."""
    largest_risk_diff: float
    """Of any expert in one of the empty ones."""
    num_prompts: int
    """Prompts of one label, the fewest in any of these."""
    smallest_p_value: float | None
    """That a test can give in any of these; None: nothing was tested."""

    @property
    def where(self) -> str:
        """For messages: all batches, or those that are meant."""
        return "any batch" if self.num_empty == self.num_batches else "any of these batches"


@dataclass(frozen=True, kw_only=True)
class Rule(ABC):
    """A way to select a batch's unsafe experts. The fields of a subclass are its parameters; it reads no other
    settings."""

    name: ClassVar[str]
    """Name in the configuration, in stores and on model cards."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    is_control: ClassVar[bool] = False
    """Whether the rule is a control, to compare with, and not meant to find unsafe experts."""
    has_null: ClassVar[bool] = True
    """Whether the number of experts depends on the batch's labels alone, so that it can be compared with the number
    under permuted labels. False if the number is fixed, or if other batches' labels matter."""

    @abstractmethod
    def select(self, batch: Evidence) -> np.ndarray:
        """The unsafe experts of the batch: bool [L, E], possibly none. Ties go to the lower layer, then to the lower
        expert."""

    @property
    @abstractmethod
    def in_words(self) -> str:
        """Which experts the rule selects, as one phrase with its parameters, for tables, logs and model cards."""

    @property
    def counted_as(self) -> Rule:
        """The rule that determines how many experts this one selects: itself, except for controls."""
        return self

    def stability(self, batch: Evidence) -> np.ndarray:
        """Fraction of half-samples in which the rule selects each expert, float64 [L, E]; 0 if an arm has one prompt.

        Runs the rule on every half-sample. Rules for which that is too slow or meaningless override it.
        """
        return batch.frequency_of_LE(self.select)

    def numbers(self, batch: Evidence, labels_NP: np.ndarray) -> list[int]:
        """How many experts the rule selects under other labels of the batch's prompts, bool [N, P]."""
        return [int(self.select(batch.relabelled(labels_P)).sum()) for labels_P in labels_NP]

    def none_selected(self, seen: Unselected) -> str:
        """Why the rule has selected no expert in these batches, and what to do."""
        return (
            f"analysis.rule = {self.name} selects no expert in {seen.where}: make its parameters less strict (see "
            "docs/statistics.md), use larger batches, or choose another rule"
        )

    @property
    def facts(self) -> dict[str, Any]:
        """The rule as JSON values: its name and its parameters."""
        return {"name": self.name, **asdict(self)}

    def like(self, other: type[Other]) -> Other:
        """Another rule with the same values for the parameters that both have, and defaults for its others."""
        own = asdict(self)
        return other(**{field.name: own[field.name] for field in fields(other) if field.name in own})

    def __post_init__(self) -> None:
        """Raises UserError: a parameter has the wrong type or is out of range."""
        require_values(self)


RULES: Registry[Rule] = Registry("selection rule", "dist_moe.rules")


class OfDifference(Rule):
    """A rule that depends only on a difference between the arms, [L, E]."""

    @abstractmethod
    def choose(self, diff_LE: np.ndarray) -> np.ndarray:
        """The selected experts, bool [L, E]."""

    def select(self, batch: Evidence) -> np.ndarray:
        return self.choose(batch.risk_diff_LE)

    def numbers(self, batch: Evidence, labels_NP: np.ndarray) -> list[int]:
        return [int(self.choose(diff_LE).sum()) for diff_LE in batch.risk_diffs_under(labels_NP)]

    def stability(self, batch: Evidence) -> np.ndarray:
        """From the difference that `statistics.estimate` names, for all half-samples at once."""
        return batch.frequency_LE(self.choose)


def from_facts(facts: Mapping[str, Any], where: str) -> Rule:
    """Restore a rule from its stored `facts`.

    Raises:
        UserError: they are not those of a rule; says `where` they are.
    """
    name = facts.get("name")
    cls = RULES.get(name) if isinstance(name, str) else None
    if cls is None or set(facts) != {"name", *(field.name for field in fields(cls))}:
        raise UserError(f"{where}: its selection rule is {shown(dict(facts))}, which no rule of this version has")
    try:
        return cls(**{key: value for key, value in facts.items() if key != "name"})
    except UserError as error:
        raise UserError(f"{where}: its selection rule is wrong: {error}") from None
