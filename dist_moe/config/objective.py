"""The section `train.objective`: one section a term that is registered, which is the term itself."""

from __future__ import annotations

from dataclasses import field, fields, make_dataclass
from typing import TYPE_CHECKING, Any

from dist_moe.objective import TERMS, Term

if TYPE_CHECKING:

    class ObjectiveConfig:
        def __init__(self, **terms: Term) -> None: ...

else:
    ObjectiveConfig = make_dataclass(
        "ObjectiveConfig",
        [(name, term, field(default_factory=term)) for name, term in TERMS.items()],
        kw_only=True,
        slots=True,
    )


def active_terms(objective: ObjectiveConfig) -> tuple[Term, ...]:
    """Those with a weight, in the order of their names."""
    section: Any = objective
    terms = [getattr(section, each.name) for each in fields(section)]
    return tuple(term for term in terms if term.weight > 0)


def needs_base(objective: ObjectiveConfig) -> bool:
    """Whether an active term compares the model with the base model."""
    return any(term.needs & {"base_logits", "base_router_logits"} for term in active_terms(objective))


def pair_terms(objective: ObjectiveConfig) -> list[str]:
    """Names of the active terms that read rejected answers."""
    return [term.name for term in active_terms(objective) if term.over == "pairs"]


def router_terms(objective: ObjectiveConfig) -> list[str]:
    """Names of the active terms that read router logits."""
    return [term.name for term in active_terms(objective) if term.needs & {"router_logits", "base_router_logits"}]


def active_settings(objective: ObjectiveConfig) -> dict[str, Any]:
    """The settings of the active terms, `<term>.<field>`: those of others change nothing."""
    terms = active_terms(objective)
    return {f"{term.name}.{each.name}": getattr(term, each.name) for term in terms for each in fields(term)}
