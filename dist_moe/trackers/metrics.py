"""Tracker that writes a JSON line for each step to metrics.jsonl; it is always on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar

from dist_moe.files import append_line, writing
from dist_moe.trackers.tracker import TRACKERS, Place

METRICS = "metrics.jsonl"


@TRACKERS.register
@dataclass(frozen=True)
class Metrics:
    name: ClassVar[str] = "metrics"

    def record(self, line: dict[str, Any], place: Place) -> None:
        if place.rank == 0:
            path = place.run_dir / METRICS
            with writing(path):
                append_line(path, json.dumps(line))
