"""Why a goal is SHORT, in numbers of the same run."""

from __future__ import annotations

from collections.abc import Sequence

from tools.bench.timing import Comparison, Count, Result

FLOOR = "floor"


def reason(result: Comparison | Count, results: Sequence[Result]) -> str:
    """Of a goal that is SHORT."""
    return result.reason if isinstance(result, Count) else "; ".join(_parts(result, results))


def _parts(c: Comparison, results: Sequence[Result]) -> list[str]:
    assert c.goal is not None
    parts, spread = [], c.spread
    floors = [r for r in results if isinstance(r, Comparison) and r.row == c.row and r.other_name.startswith(FLOOR)]
    for floor in floors if c not in floors else ():
        share = _floor_share(floor, c)
        is_out_of_reach = "above the goal, which is out of reach here" if share > c.goal else "within the goal"
        parts.append(f"the floor itself is at {share:.2f} of it, {is_out_of_reach}")
        parts.append(f"ours is at {floor.spread.median:.2f} of the floor")
    cpu = c.cpu_spread
    found = "within the goal, so the rest is waiting" if cpu.median <= c.goal else "so most of it is work"
    parts.append(f"in CPU time {cpu.median:.3f} ({cpu.low:.3f} to {cpu.high:.3f}), {found}")
    if spread.low <= c.goal:
        parts.append(f"the goal lies in the interval {spread.low:.3f} to {spread.high:.3f}: a second run may PASS")
    return parts


def _floor_share(floor: Comparison, other: Comparison) -> float:
    """The time of the floor over that of the other, each relative to ours at its side."""
    return other.spread.median / floor.spread.median
