"""What a card says of a rule names what the rule reads, for every rule."""

import pytest

from dist_moe.errors import UserError
from dist_moe.rules.describe import IN_WORDS, in_words, is_control
from dist_moe.rules.rules import RULES
from dist_moe.rules.select import PARAMETERS, SelectionRule

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


def test_there_is_one_for_each_rule():
    assert IN_WORDS.keys() == RULES.keys() == PARAMETERS.keys()
    assert len(IN_WORDS) == 13


@pytest.mark.parametrize("name", RULES)
def test_it_says_each_artefact_parameter_and_whether_it_is_a_control(name):
    rule = SelectionRule(name=name, **OTHER)
    words = in_words(rule)
    for key in PARAMETERS[name]:
        assert WORDS.get(key, str(OTHER[key])) in words
    assert is_control(rule) == words.startswith("control: ") == (name in ("random", "random_matched", "load", "lowest"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "best"}, "no selection rule 'best'"),
        ({"threshold": float("nan")}, "threshold is nan: expected a number from -1 to 1"),
        ({"threshold": float("inf")}, "threshold is inf"),
        ({"threshold": "0.1"}, "threshold is '0.1'"),
        ({"top_k": -3}, "top_k is -3: expected a whole number from 1"),
        ({"top_k": 2.0}, "top_k is 2.0"),
        ({"top_k": True}, "top_k is True"),
        ({"per_layer": 0}, "per_layer is 0"),
        ({"alpha": 1.5}, "alpha is 1.5: expected a number from 0 to 1"),
        ({"frequency": -0.1}, "frequency is -0.1"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"correction": "none"}, "correction is 'none'"),
    ],
)
def test_a_rule_with_a_wrong_parameter_is_none(change, says):
    with pytest.raises(UserError) as error:
        SelectionRule(**change)
    assert says in str(error.value)
