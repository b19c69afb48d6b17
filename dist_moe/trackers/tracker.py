"""The interface of trackers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from dist_moe.registry import Registry


@dataclass(frozen=True, slots=True)
class Place:
    """What a tracker may know of the run, besides its records."""

    run_dir: Path
    """Directory in which the run works until it has finished; trackers may write files there."""
    rank: int
    num_steps: int
    num_own_tokens: int = 0
    """Tokens of this rank's rows in the step; the record has those of all ranks."""


class Tracker(Protocol):
    """Called on every rank after each step. A `UserError` that it raises ends the run on all ranks.

    After a stop or a kill, a run resumes from its checkpoint, so later steps are recorded again.
    """

    name: ClassVar[str]

    def record(self, line: dict[str, Any], place: Place) -> None:
        """`line` is a record as in metrics.jsonl (see docs/formats.md), the same on all ranks except for times."""


TRACKERS: Registry[Tracker] = Registry("tracker", "dist_moe.trackers")
