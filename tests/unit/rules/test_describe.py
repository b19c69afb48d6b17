"""What a card says of a rule names what the rule reads, for every rule; and facts that are no rule's are refused."""

from dataclasses import fields

import pytest

from dist_moe.errors import UserError
from dist_moe.rules import RULES, from_facts
from tests.unit.rules.made import made

OTHER = {
    "threshold": 0.0625,
    "top_k": 17,
    "alpha": 0.03,
    "correction": "family",
    "frequency": 0.75,
    "per_layer": 3,
    "top_p": 0.35,
}
WORDS = {"correction": "a family-wise p"}


@pytest.mark.parametrize("name", RULES)
def test_it_says_each_artefact_parameter_and_whether_it_is_a_control(name):
    rule = made(name, **OTHER)
    for field in fields(rule):
        assert WORDS.get(field.name, str(getattr(rule, field.name))) in rule.in_words
    assert rule.is_control == rule.in_words.startswith("control: ")


def test_these_are_controls():
    controls = {name for name, rule in RULES.items() if rule.is_control}
    assert {"random", "random_matched", "load", "lowest", "every_expert", "pooled", "union"} <= controls
    others = {"threshold_top_k", "shrunk", "significant", "stable", "budget_per_layer", "steermoe", "gradient"}
    assert not controls & {*others, "esft_token", "esft_gate"}


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("best", {}, "which no rule of this version has"),
        ("threshold_top_k", {"x": 1}, "which no rule of this version has"),
        ("threshold_top_k", {"alpha": 0.05}, "which no rule of this version has"),
        ("threshold_top_k", {"threshold": float("nan")}, "threshold is nan: expected less than 1"),
        ("threshold_top_k", {"threshold": float("inf")}, "threshold is inf"),
        ("threshold_top_k", {"threshold": "0.1"}, "threshold is '0.1'"),
        ("threshold_top_k", {"top_k": -3}, "top_k is -3: expected greater than or equal to 1"),
        ("threshold_top_k", {"top_k": 2.0}, "top_k is 2.0"),
        ("threshold_top_k", {"top_k": True}, "top_k is True"),
        ("budget_per_layer", {"per_layer": 0}, "per_layer is 0"),
        ("significant", {"alpha": 1.5}, "alpha is 1.5: expected less than 1"),
        ("stable", {"frequency": -0.1}, "frequency is -0.1"),
        ("esft_token", {"top_p": float("nan")}, "top_p is nan"),
        ("significant", {"correction": "none"}, "correction is 'none'"),
    ],
)
def test_a_rule_with_a_wrong_parameter_is_none(name, change, says):
    with pytest.raises(UserError) as error:
        from_facts({**(RULES[name]().facts if name in RULES else {"name": name}), **change}, "here")
    assert says in str(error.value)
    assert str(error.value).startswith("here: its selection rule is ")


def test_facts_without_a_parameter_are_no_rules():
    with pytest.raises(UserError, match="no rule of this version has"):
        from_facts({"name": "threshold_top_k", "threshold": 0.05}, "here")
    with pytest.raises(UserError, match="no rule of this version has"):
        from_facts({"name": ["lowest"], "threshold": 0.05, "top_k": 1}, "here")


def test_another_rule_has_what_both_read():
    steer = made("steermoe", top_k=7)
    assert steer.like(RULES["lowest"]).facts == {"name": "lowest", "threshold": 0.05, "top_k": 7}
    assert made("lowest", threshold=0.2, top_k=3).like(RULES["gradient"]).facts == {"name": "gradient", "top_k": 3}
