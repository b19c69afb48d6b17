"""Tracker that prints a line for each step."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

from dist_moe.trackers.tracker import TRACKERS, Place

log = logging.getLogger(__name__)


@TRACKERS.register
@dataclass(frozen=True)
class Console:
    name: ClassVar[str] = "console"

    def record(self, line: dict[str, Any], place: Place) -> None:
        log.info(
            f"step {line['step']:>{len(str(place.num_steps))}}/{place.num_steps}  "
            f"batch {line['batch']} ({line['category']})  mask {line['mask_hash'][:12]}  experts {_experts(line)}  "
            f"{_losses(line)}  norm {line['grad_norm']:.4f}  tokens/s {line['tokens_per_second']:,.0f}"
        )


def _experts(line: dict[str, Any]) -> str:
    """How many the step could train, and whether it is the batch's mask that has none."""
    return f"{line['num_active']} (EMPTY MASK)" if line["is_empty"] else str(line["num_active"])


def _losses(line: dict[str, Any]) -> str:
    """The loss, and its terms if there are several."""
    terms = ", ".join(f"{name} {term['mean']:.4f}" for name, term in line["terms"].items())
    return f"loss {line['loss']:.4f}" + (f" ({terms})" if len(line["terms"]) > 1 else "")
