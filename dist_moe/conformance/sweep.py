"""Runs every check on every MoE causal language model type of the installed transformers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from dist_moe.conformance.checks import CHECKS
from dist_moe.conformance.sizes import ALL_CONFIGS
from dist_moe.conformance.specimen import Specimen
from dist_moe.conformance.types import moe_model_types

NOT_TRIED = "not tried: no tiny configuration in dist_moe/conformance/sizes.py"


@dataclass(frozen=True, slots=True)
class Support:
    """Results for one model type: whether each capability works, and a note."""

    model_type: str
    works: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(CHECKS, False))
    note: str = ""

    def record(self) -> dict[str, object]:
        """As a flat JSON object."""
        return {"model_type": self.model_type, **self.works, "note": self.note}


def sweep(model_types: Iterable[str] | None = None) -> Iterator[Support]:
    """Check these model types, or all that transformers has, one after another."""
    for model_type in moe_model_types() if model_types is None else model_types:
        yield support(model_type) if model_type in ALL_CONFIGS else Support(model_type, note=NOT_TRIED)


def support(model_type: str) -> Support:
    """Run all checks on one model type; the note says why a check failed."""
    works: dict[str, bool] = {}
    notes: list[str] = []
    # a future keeps whatever a check raises, so one family cannot end the sweep
    # what libraries print is no part of the answer
    with ThreadPoolExecutor(1) as pool, TemporaryDirectory() as directory, redirect_stdout(sys.stderr):
        specimen = Specimen(model_type, Path(directory))
        for name, check in CHECKS.items():
            done = pool.submit(check, specimen)
            error = done.exception()
            works[name] = error is None
            line = done.result() if error is None else _first_line(error)
            if line and line not in notes:
                notes.append(line)
    return Support(model_type, works, "; ".join(notes))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
