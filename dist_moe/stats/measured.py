"""Numbers with their intervals, as values: what an evaluation finds, and what tables and cards show."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    value: float
    low: float | None
    """Ends of the interval; None: there are too few prompts for one."""
    high: float | None
    num_rows: int
    """Rows, or pairs, that it is of."""
    num_prompts: int
    """Different prompts among them."""
    p_value: float | None = None
    """Of a difference: the chance of one at least as large if there were none. None: not tested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number of a group. None: there is no row that it could be of, or no before."""

    before: Estimate | None = None
    after: Estimate | None = None
    change: Estimate | None = None
    """after - before, on the same rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    kind: str
    """Of the rows, such as `held out`."""
    by: str
    """What they have in common: all | batch | category | file."""
    name: str
    """The batch's number, the category, the file; `all` for all rows of the kind."""
    num_safe: int
    """Rows."""
    num_unsafe: int
    num_prompts: int
    """Different prompts among them."""
    measures: dict[str, Measure]
