"""Selection rules, which select a batch's unsafe experts, and controls to compare them with. Imports no torch.

A rule is one object: a dataclass in a module of this package, which registers itself. Its fields are its parameters,
and become the settings `analysis.<name>`. Configuration, help, statistics, model card and inspection take all that they
need from the object.
"""

from dist_moe.rules.rule import RULES, Rule, from_facts

__all__ = ["RULES", "Rule", "from_facts"]
