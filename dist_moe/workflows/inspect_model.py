"""What a checkpoint is to this package: what `dist-moe inspect-model` runs. No weight is read."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path

from dist_moe.model.model import check_model_dir
from dist_moe.report.model import describe, table

log = logging.getLogger(__name__)


def inspect_model(path: Path, *, as_json: bool) -> None:
    """Log one line a fact, or all as a JSON object."""
    check_model_dir(path)
    summary = describe(path)
    if as_json:
        log.info(json.dumps(asdict(summary), indent=2))
        return
    for line in table(summary):
        log.info(line)
