"""What a tracker is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dist_moe.registry import Registry


@dataclass(frozen=True, slots=True)
class Place:
    """What a tracker may know of the run, beside its records."""

    run_dir: Path
    """Where the run is until it has ended: files of a tracker's own have a place there."""
    rank: int
    num_steps: int


class Tracker(Protocol):
    """Called on every rank when a step is done; what it raises as `UserError` ends the run on all of them.

    After a stop or a kill a run goes on from its checkpoint, so steps after that are recorded again.
    """

    name: ClassVar[str]

    def record(self, line: dict[str, Any], place: Place) -> None:
        """`line` is one of metrics.jsonl, as docs/formats.md has it: the same on all ranks but for times."""


TRACKERS: Registry[Tracker] = Registry("tracker", "dist_moe.trackers")
