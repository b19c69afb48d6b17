"""What a selection rule takes, in words."""

from collections.abc import Mapping

from dist_moe.rules.rules import COUNTED_AS
from dist_moe.rules.select import SelectionRule

AS_MANY = "as many as have a risk_diff above {threshold}, at most {top_k}"
IN_WORDS: Mapping[str, str] = {
    "threshold_top_k": "risk_diff above {threshold}, at most {top_k}, largest first",
    "shrunk": "risk_diff, drawn towards that of all prompts, above {threshold}, at most {top_k}, largest first",
    "significant": "risk_diff above 0 with {correction} of at most {alpha}",
    "stable": "risk_diff above {threshold}, at most {top_k}, in at least {frequency} of half-samples of the prompts",
    "budget_per_layer": "the {per_layer} of largest risk_diff in each layer, whatever its sign",
    "esft_token": "in each layer, the fewest experts with {top_p} of the unsafe prompts' routing; safe prompts play no "
    "part",
    "esft_gate": "in each layer, the fewest experts with {top_p} of the unsafe prompts' routing weight; safe prompts "
    "play no part",
    "steermoe": "the {top_k} of largest |risk_diff|, of either sign",
    "gradient": "the {top_k} on which the loss of the unsafe prompts' responses depends most; safe prompts play no "
    "part",
    "random": f"control: drawn at random, {AS_MANY}",
    "random_matched": f"control: drawn at random among experts of like load in the same layer, {AS_MANY}",
    "load": f"control: most used by safe and unsafe prompts together, {AS_MANY}",
    "lowest": f"control: lowest risk_diff, which are safe prompts' experts, {AS_MANY}",
}
"""Of one batch's experts, with the rule's parameters to be filled in."""
CORRECTIONS = {"fdr": "a q-value", "family": "a family-wise p"}


def in_words(rule: SelectionRule) -> str:
    """Which experts of a batch the rule takes, one phrase."""
    words = {**rule.facts}
    if "correction" in words:
        words["correction"] = CORRECTIONS[rule.correction]
    return IN_WORDS[rule.name].format(**words)


def is_control(rule: SelectionRule) -> bool:
    """Whether the rule is there to be compared with, and not to find unsafe experts."""
    return rule.name in COUNTED_AS
