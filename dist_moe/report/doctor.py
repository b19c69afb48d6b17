"""What `dist-moe doctor` shows: a block to paste into a report."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Iterator

from dist_moe.doctor.check import Finding
from dist_moe.version import __version__


def doctor_lines(found: Iterable[tuple[str, Finding]]) -> Iterator[str]:
    """A line for each check, and one with the remedy below each that has failed, as they come."""
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    yield f"Machine {platform.node()}, dist_moe {__version__}, {when}"
    num_failed, num = 0, 0
    for name, finding in found:
        num, num_failed = num + 1, num_failed + (not finding.ok)
        yield f"{'ok  ' if finding.ok else 'FAIL'}  {name:<13}  {finding.seen}"
        if finding.remedy:
            yield f"      {'':<13}  -> {finding.remedy}"
    yield f"{num} checks: {f'{num_failed} failed' if num_failed else 'all well'}"
