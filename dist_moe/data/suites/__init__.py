"""Safety suites by their usual files: which columns they have, and what our rows are made of.

A suite is one object: a class in a module of this package, which registers itself. No file comes with the package.
"""

from dist_moe.data.suites.suite import SUITES, Suite, read_suite, suite_of

__all__ = ["SUITES", "Suite", "read_suite", "suite_of"]
