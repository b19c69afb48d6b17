"""Hands an evaluated model, or a run's export, to lm-evaluation-harness."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from dist_moe.errors import UserError
from dist_moe.evaluation.harness import Capabilities, Tasks, capabilities, require_harness, run_harness
from dist_moe.workflows.evaluated import Evaluated
from dist_moe.workflows.export import export

log = logging.getLogger(__name__)


def require_tasks(tasks: Tasks, evaluated: Evaluated) -> None:
    """Refuse early what the harness cannot be asked for.

    Raises:
        UserError: it is not installed, the evaluation is of no model that is on disk, or there is no such directory.
    """
    require_harness()
    if evaluated.alphas or evaluated.silence is not None:
        raise UserError(
            "--harness takes a model as it is on disk: leave --alphas and --silence out, or evaluate `dist-moe export "
            "--alpha`"
        )
    if tasks.include is not None and not tasks.include.is_dir():
        raise UserError(f"--harness-include: no directory {tasks.include}: expected one with tasks in YAML files")


def measure(evaluated: Evaluated, tasks: Tasks, *, chat: bool) -> Capabilities:
    """Run the tasks on what is before, if there is any, and on what is after; `chat` applies the chat template.

    Raises:
        UserError: the harness has failed.
    """
    dtype, path, before = evaluated.config.model.dtype, evaluated.config.model.path, None
    if evaluated.before is not None:
        log.info(f"lm-evaluation-harness: {', '.join(tasks.names)} on {evaluated.before}")
        before = run_harness(evaluated.before, tasks, dtype=dtype, chat=chat)
    if evaluated.run is None:
        log.info(f"lm-evaluation-harness: {', '.join(tasks.names)} on {path}")
        return capabilities(tasks, before, run_harness(path, tasks, dtype=dtype, chat=chat))
    with tempfile.TemporaryDirectory(dir=evaluated.out, prefix=".harness-") as folder:
        exported = Path(folder) / "model"
        export(evaluated.run.dir.path, exported)
        log.info(f"lm-evaluation-harness: {', '.join(tasks.names)} on the trained model")
        return capabilities(tasks, before, run_harness(exported, tasks, dtype=dtype, chat=chat))
