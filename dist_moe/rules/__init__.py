"""Selection rules: which experts of a batch are called unsafe, and controls to compare them with. No torch.

A rule is one object: a dataclass in a module of this package, which registers itself. Its fields are its parameters,
and are the settings `analysis.<name>`. Everything else asks the object: the configuration and its help, the statistics
that are kept of it, the card, the inspection.
"""

from dist_moe.rules.rule import RULES, Rule, from_facts

__all__ = ["RULES", "Rule", "from_facts"]
