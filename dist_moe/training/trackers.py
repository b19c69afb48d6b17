"""Where the record of a step goes when it is done. A new one is a class with this method, named where a run is made."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, Protocol

from dist_moe.files import append_line, writing

log = logging.getLogger(__name__)


class Tracker(Protocol):
    """Called on every rank after each step; what it raises as `UserError` ends the run on all of them."""

    def record(self, line: dict[str, Any]) -> None:
        """`line` is what docs/formats.md says of metrics.jsonl, JSON values: the same on all ranks but for times."""


class MetricsFile:
    """One JSON line a step: the run's ledger, written by the first rank."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path, self.rank = path, rank

    def record(self, line: dict[str, Any]) -> None:
        if self.rank == 0:
            with writing(self.path):
                append_line(self.path, json.dumps(line))


class Console:
    """A short line a step."""

    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps

    def record(self, line: dict[str, Any]) -> None:
        log.info(
            f"step {line['step']:>{len(str(self.num_steps))}}/{self.num_steps}  "
            f"batch {line['batch']} ({line['category']})  experts {line['num_active']}  loss {line['loss']:.4f}  "
            f"norm {line['grad_norm']:.4f}  tokens/s {line['tokens_per_second']:,.0f}"
        )
