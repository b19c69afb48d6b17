"""What a check is given and returns, and the register of all checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a person wants to know."""

    run_dir: Path
    """Where a run would write; it need not exist."""
    ranks: int
    """How many processes exchange something."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found."""

    ok: bool
    seen: str
    """What there is, in a line."""
    remedy: str = ""
    """What to do; "" if nothing need be done."""

    @classmethod
    def of(cls, seen: str, problems: dict[str, str]) -> Finding:
        """`problems` are remedies by what is wrong."""
        return cls(not problems, "; ".join([*problems, seen] if seen else problems), "; ".join(problems.values()))


@dataclass(frozen=True, slots=True)
class Check:
    function: Callable[[Asked], Finding]
    limit_s: float
    """A check that takes longer has failed."""


CHECKS: dict[str, Check] = {}
"""By name."""


def check(limit_s: float = 20.0) -> Callable[[Callable[[Asked], Finding]], Callable[[Asked], Finding]]:
    """Decorator that registers a function as the check of its name."""

    def register(function: Callable[[Asked], Finding]) -> Callable[[Asked], Finding]:
        CHECKS[function.__name__.replace("_", " ")] = Check(function, limit_s)
        return function

    return register
