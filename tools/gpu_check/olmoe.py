"""Our step at the shape of OLMoE-1B-7B."""

from __future__ import annotations

from tools.gpu_check.here import Here
from tools.gpu_check.ours import run_largest


def run(here: Here) -> None:
    run_largest(here, "olmoe", "olmoe", [(None, 16), (None, 8), (None, 4)])
