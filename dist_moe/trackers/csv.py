"""A table for a spreadsheet."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from typing import Any, ClassVar

from dist_moe.files import writing
from dist_moe.trackers.tracker import TRACKERS, Place

COLUMNS = ("step", "epoch", "batch", "category", "loss", "grad_norm", "num_active", "num_stepped", "lr")


@TRACKERS.register
@dataclass(frozen=True)
class Csv:
    """steps.csv in the run directory: a line each step, with the mean of each of the objective's terms."""

    name: ClassVar[str] = "csv"

    def record(self, line: dict[str, Any], place: Place) -> None:
        if place.rank > 0:
            return
        path, first = place.run_dir / "steps.csv", line["step"] == 1
        with writing(path), path.open("w" if first else "a", newline="", encoding="utf-8") as stream:
            table = csv.writer(stream)
            if first:
                table.writerow([*COLUMNS, *line["terms"]])
            table.writerow([*(line[name] for name in COLUMNS), *(term["mean"] for term in line["terms"].values())])
