"""Makes rules by name, for tests that try all rules."""

from dataclasses import fields

from dist_moe.rules import RULES


def made(name, **parameters):
    """The rule, with those of the parameters that it knows."""
    cls = RULES[name]
    return cls(**{field.name: parameters[field.name] for field in fields(cls) if field.name in parameters})
