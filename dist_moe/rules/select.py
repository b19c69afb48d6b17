"""A selection rule by name with its parameters, and the rules that look at a difference alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dist_moe.errors import UserError, shown
from dist_moe.stats.order import first_of_each_layer, selected

PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "threshold_top_k": ("threshold", "top_k"),
    "shrunk": ("threshold", "top_k"),
    "significant": ("alpha", "correction"),
    "stable": ("threshold", "top_k", "frequency"),
    "budget_per_layer": ("per_layer",),
    "esft_token": ("top_p",),
    "esft_gate": ("top_p",),
    "steermoe": ("top_k",),
    "gradient": ("top_k",),
    "random": ("threshold", "top_k"),
    "random_matched": ("threshold", "top_k"),
    "load": ("threshold", "top_k"),
    "lowest": ("threshold", "top_k"),
}
"""The rules by name, and what each reads of a `SelectionRule`."""
CORRECTIONS = ("fdr", "family")
RANGES: Mapping[str, tuple[type, float, float]] = {
    "threshold": (float, -1, 1),
    "top_k": (int, 1, np.inf),
    "alpha": (float, 0, 1),
    "frequency": (float, 0, 1),
    "per_layer": (int, 1, np.inf),
    "top_p": (float, 0, 1),
}
"""Type, least and largest value of each number; NaN is in no range. The configuration is stricter at the ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionRule:
    """How masks were made; stored beside the masks. What each rule does is in `dist_moe.rules.rules`."""

    name: str = "threshold_top_k"
    threshold: float = 0.05
    """threshold_top_k, stable and the controls: an expert is unsafe when its risk_diff is above this. shrunk: when its
    shrunk risk_diff is."""
    top_k: int = 50
    """The same, steermoe and gradient: at most this many experts a batch, over all layers."""
    alpha: float = 0.05
    """significant: the level."""
    correction: Literal["fdr", "family"] = "fdr"
    """significant: what is compared with alpha, q-values or family-wise p."""
    frequency: float = 0.8
    """stable: the least share of half-samples."""
    per_layer: int = 4
    """budget_per_layer: experts a layer."""
    top_p: float = 0.2
    """esft_token, esft_gate: the share of a layer's routing that the chosen experts must have."""

    def __post_init__(self) -> None:
        """Raises UserError: there is no such rule, or a parameter is of another type or out of its range."""
        if self.name not in PARAMETERS:
            raise UserError(f"no selection rule {shown(self.name)}: expected one of {', '.join(PARAMETERS)}")
        if self.correction not in CORRECTIONS:
            raise UserError(f"correction is {shown(self.correction)}: expected one of {', '.join(CORRECTIONS)}")
        for key, (kind, low, high) in RANGES.items():
            value = getattr(self, key)
            if type(value) not in (int, kind) or not low <= value <= high:
                what = "a whole number" if kind is int else "a number"
                limits = f"from {low:g}" if high == np.inf else f"from {low:g} to {high:g}"
                raise UserError(f"{key} is {shown(value)}: expected {what} {limits}")

    @classmethod
    def of(cls, facts: Mapping[str, Any], where: str) -> "SelectionRule":
        """The rule that was written as `facts`.

        Raises:
            UserError: `facts` are no rule's; says `where` they stand.
        """
        name = facts.get("name")
        known = PARAMETERS.get(name) if isinstance(name, str) else None
        if known is None or set(facts) != {"name", *known}:
            raise UserError(
                f"{where}: its selection rule is {shown(dict(facts))}, which no rule of this version writes"
            )
        try:
            return cls(**facts)
        except UserError as error:
            raise UserError(f"{where}: its selection rule is wrong: {error}") from None

    @property
    def facts(self) -> dict[str, Any]:
        """The rule's name and what it reads, and no more; `SelectionRule(**facts)` is the same rule."""
        return {name: getattr(self, name) for name in ("name", *PARAMETERS[self.name])}


def threshold_top_k(risk_diff_LE: np.ndarray, rule: SelectionRule) -> np.ndarray:
    """Above the threshold, at most top_k, largest first."""
    return selected(risk_diff_LE, rule.threshold, rule.top_k)


def budget_per_layer(risk_diff_LE: np.ndarray, rule: SelectionRule) -> np.ndarray:
    """The per_layer largest of each layer."""
    return first_of_each_layer(risk_diff_LE, np.full(len(risk_diff_LE), rule.per_layer))


def steermoe(risk_diff_LE: np.ndarray, rule: SelectionRule) -> np.ndarray:
    """SteerMoE (arXiv 2509.09660): the top_k largest |risk_diff| over all layers, of either sign; no threshold."""
    return selected(np.abs(risk_diff_LE), -1.0, rule.top_k)


Choice = Callable[[np.ndarray, SelectionRule], np.ndarray]

OF_DIFFERENCE: Mapping[str, Choice] = {
    "threshold_top_k": threshold_top_k,
    "budget_per_layer": budget_per_layer,
    "steermoe": steermoe,
}
"""Rules that look at a difference [L, E] alone."""
