"""Numbers as words, with no more digits than they are worth."""

from __future__ import annotations

from collections.abc import Callable

from dist_moe.report.evaluation import shown_p
from dist_moe.stats.crossed import Mean
from dist_moe.stats.measured import Estimate

__all__ = ["is_share", "shown", "shown_change", "shown_hash", "shown_p", "shown_value"]


TO = "\u00a0to\u00a0"
"""Between the ends of an interval, which stay in one line."""


def is_share(measure: str) -> bool:
    """Whether a measure is one of rows or pairs, which is told in percent."""
    return measure.startswith(("refused", "pairs:"))


def shown(measure: str, found: Estimate | Mean | None) -> str:
    """`58 % (32 to 81)`, `0.412 (0.380 to 0.450)`."""
    if found is None:
        return "–"
    return _with_interval(found, *_unit(measure, " %"), _rounded)


def shown_value(measure: str, value: float | None) -> str:
    """`58 %`, `0.412`."""
    if value is None:
        return "–"
    scale, digits, unit = _unit(measure, " %")
    return f"{_rounded(scale * value, digits)}{unit}"


def shown_change(measure: str, found: Estimate | Mean | None) -> str:
    """`+58 points (+32 to +81)`."""
    if found is None:
        return "–"
    return _with_interval(found, *_unit(measure, " points"), _signed)


def _with_interval(
    found: Estimate | Mean, scale: int, digits: int, unit: str, number: Callable[[float, int], str]
) -> str:
    value = f"{number(scale * found.value, digits)}{unit}"
    if found.low is None or found.high is None:
        return f"{value} (too few prompts for an interval)"
    return f"{value} ({number(scale * found.low, digits)}{TO}{number(scale * found.high, digits)})"


def _unit(measure: str, of_shares: str) -> tuple[int, int, str]:
    """Factor, digits behind the point, and unit."""
    if is_share(measure):
        return 100, 0, of_shares.replace(" ", "\u00a0")
    return 1, 1 if measure.startswith("answer tokens") else 3, ""


def shown_hash(digest: str) -> str:
    """So much of it that two are told apart."""
    return digest if ":" in digest else digest[:16]


def _rounded(value: float, digits: int) -> str:
    text = f"{value:,.{digits}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def _signed(value: float, digits: int) -> str:
    text = _rounded(value, digits)
    return text if text.startswith("-") or float(text.replace(",", "")) == 0 else f"+{text}"
