"""What one rank of a job says of itself while it works, in logs/rank-N.json; `dist-moe status` reads it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, NonNegativeInt

from dist_moe.artefacts import EXACT, checked
from dist_moe.files import read_json

LOGS = "logs"
INTERRUPTED = "interrupted"
"""The error of a rank that a signal has ended."""
ADVICE = "it may be removed; the next job writes it anew"


@dataclass(frozen=True, slots=True, kw_only=True)
class RankState:
    """Of the last job that has begun in a run directory."""

    __pydantic_config__: ClassVar[ConfigDict] = EXACT
    command: str
    """train, count or compare."""
    rank: NonNegativeInt
    num_ranks: NonNegativeInt
    process: NonNegativeInt
    host: str
    begun: float
    """When it began to write its results, in seconds since 1970, by the rank's clock; `told` too."""
    told: float
    """When it wrote this."""
    unit: str
    """What it counts: steps, parts or runs."""
    done: NonNegativeInt = 0
    """Of all ranks together."""
    total: NonNegativeInt = 0
    num_tokens: NonNegativeInt = 0
    """Of this rank's own rows, in the steps of this job: how the work is spread."""
    device: str
    peak_bytes: NonNegativeInt = 0
    """Most memory so far: allocated on the GPU, or resident memory of the process on a CPU."""
    has_ended: bool = False
    """False: it works, or was killed."""
    error: str | None = None
    """Why it has ended; None: its work is done, or it was asked to stop."""

    def write(self, path: Path) -> None:
        """Replace the rank's file. It is not flushed to disk: after a power cut nobody asks what a rank was doing.

        Raises:
            OSError: it cannot be written.
        """
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(json.dumps(asdict(self)) + "\n")
        partial.replace(path)


def read_state(path: Path) -> RankState:
    """Read a rank's file.

    Raises:
        UserError: it is not what a rank writes.
    """
    return checked(RankState, read_json(path, "a rank's state"), str(path), ADVICE)
