"""Judges: was a prompt refused or answered? No torch but inside the call that reads a classifier's weights.

A judge is one object: a dataclass in a module of this package, which registers itself. Its fields are its settings,
`evaluation.judge.<name>.<field>`. Everything else asks the object: the configuration and its help, the record of an
evaluation, its tables.
"""

from dist_moe.judges.judge import JUDGES, Answered, Judge, Judgement, Verdict

__all__ = ["JUDGES", "Answered", "Judge", "Judgement", "Verdict"]
