"""`train.compile`: the same bits when compiled anew, no bit outside the mask; steps a second with and without it."""

from __future__ import annotations

import torch

from tools.gpu_check.freeze import freeze
from tools.gpu_check.here import Here, guarded, relative, report
from tools.gpu_check.ours import run_largest

FAMILY = "qwen3_moe"


def run(here: Here) -> None:
    dtype = torch.float32 if here.dry else torch.bfloat16
    with guarded("compile", f"{FAMILY} {dtype}"):
        with_it = freeze(here, "compile", FAMILY, "update", dtype, compiled=True)
        without = freeze(here, "compile", FAMILY, "update", dtype)
        error = relative(*(torch.tensor(losses, dtype=torch.float64) for losses in (with_it, without)))
        differ = with_it != without  # less is rounded in between: where no loss differs, nothing was compiled
        report("compile", "losses beside those without", differ and error < (1e-5 if here.dry else 2e-2), error=error)
    run_largest(here, "compile", "olmoe", [(None, 16), (None, 8), (None, 4)], ("torch", "compiled"), ("update",))
