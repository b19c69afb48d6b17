"""Changes a selection rule as the user asks on the command line: another name, or other parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dist_moe.errors import UserError, shown
from dist_moe.rules import RULES, Rule


def changed_rule(rule: Rule, words: Mapping[str, str]) -> Rule:
    """The rule with another name or other parameters, given as text.

    Raises:
        UserError: there is no such rule or parameter, or the value is not valid.
    """
    from dist_moe.config.settings import from_words  # takes as long to import as a view to be shown

    name = words.get("name", rule.name)
    if name not in RULES:
        raise UserError(f"no rule {shown(name)}: expected one of {', '.join(sorted(RULES))}")
    changed = rule.like(RULES[name])
    known = [field.name for field in dataclasses.fields(changed)]
    values: dict[str, Any] = {}
    for key, word in words.items():
        if key == "name":
            continue
        if key not in known:
            raise UserError(f"the rule {name} has no parameter {shown(key)}: expected {', '.join(known)}")
        values[key] = from_words(f"analysis.{key}", [word], f"{key}={word}")
    return dataclasses.replace(changed, **values)
