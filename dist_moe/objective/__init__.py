"""What a training step minimizes: a sum of named terms. No torch is imported here: terms call tensors' methods.

A term is one object: a dataclass in a module of this package, which registers itself. Its fields are the settings
`train.objective.<term>.<field>`, and its docstring says what it is. The step, the metrics, the console, the facts of
a run and what it resumes from follow from the object.
"""

from dist_moe.objective.term import TERMS, ContrastTerm, Inputs, Over, Rows, Term, TokenTerm

__all__ = ["TERMS", "ContrastTerm", "Inputs", "Over", "Rows", "Term", "TokenTerm"]
