"""What an export, its card and a delta say of the run that they come from."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dist_moe.artefacts import checked
from dist_moe.rules import Rule, from_facts
from dist_moe.training.facts import Arms, RunFacts, TrainingFacts

Scores = dict[str, dict[str, dict[str, float | None]]]
"""Group -> measure -> before | after."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quoted:
    """An evaluation of the very experts that are exported."""

    category: Scores
    all: Scores
    data_hash: str
    trained_on: bool
    """Whether its prompts are those of the training."""
    prompts: Arms


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts(TrainingFacts):
    """In a delta as JSON; keys that are not here are not read."""

    model_name: str
    num_trained_experts: int
    evaluation: Quoted | None

    @classmethod
    def of(cls, run: RunFacts, model_name: str, num_trained_experts: int, evaluation: Quoted | None) -> Facts:
        told = {field.name: getattr(run, field.name) for field in fields(TrainingFacts)}
        return cls(**told, model_name=model_name, num_trained_experts=num_trained_experts, evaluation=evaluation)

    @property
    def rule(self) -> Rule:
        return from_facts(self.selection_rule, "the run")

    @classmethod
    def parse(cls, value: object, what: str, advice: str) -> Facts:
        """From plain values.

        Raises:
            UserError: one of them is missing, of another type, or the rule is none that there is.
        """
        facts = checked(cls, value, what, advice)
        from_facts(facts.selection_rule, what)
        return facts
