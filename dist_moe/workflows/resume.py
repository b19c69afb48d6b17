"""Finds the checkpoint from which an unfinished training run resumes, and checks that the run is the same."""

from __future__ import annotations

import hashlib
import logging
import shutil
from typing import Any

from dist_moe.config.schema import Config
from dist_moe.errors import UserError
from dist_moe.files import hash_first_lines
from dist_moe.parallel.shared_files import remove_partial
from dist_moe.training.checkpoint import Checkpoint, checkpoint_directories, last_checkpoint
from dist_moe.training.ledger import keep_lines
from dist_moe.training.revisions import MaskRevisions
from dist_moe.workflows.inputs import Inputs
from dist_moe.workflows.run_dir import RunDir, require_absent
from dist_moe.workflows.trained_run import result_settings

log = logging.getLogger(__name__)


def resume_facts(config: Config, inputs: Inputs, masks: MaskRevisions) -> dict[str, Any]:
    """Everything that determines a run's steps; a checkpoint with other facts is refused."""
    batches = hashlib.sha256(" ".join(masks.first.batch_ids).encode()).hexdigest()
    return {
        "model_hash": inputs.model_hash,
        "tokenizer_hash": inputs.tokenizer_hash,
        "data_hash": inputs.prompts.data_hash,
        "tokens_hash": inputs.tokens_hash,
        "batches_hash": batches,
        "masks_digest": masks.first.digest,
        "mask_revisions": [[end, store.digest] for end, store in zip(masks.ends, masks.stores[1:], strict=True)],
        **result_settings(config),
    }


def unfinished_run(work: RunDir, config: Config, facts: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint to resume from; None: the run starts at step 0. `work` is where the run works until it has
    finished.

    Raises:
        UserError: existing results would be lost, and overwrite is not set.
    """
    if not config.overwrite:
        require_absent(work.experts, overwrite=False)
    if config.checkpoint.resume == "auto":
        try:
            found = last_checkpoint(work.checkpoints, facts)
            if found is not None:
                _require_metrics(work, found)
        except UserError as error:
            if not config.overwrite:
                raise
            log.info(f"Starting again from step 0, because overwrite is set: {error}")
            return None
        if found is not None:
            return found
    if not config.overwrite:
        for earlier in (work.metrics, *checkpoint_directories(work.checkpoints)):
            require_absent(earlier, overwrite=False)
    return None


def _require_metrics(run: RunDir, found: Checkpoint) -> None:
    written = found.index.metrics_sha256
    if written is not None and hash_first_lines(run.metrics, found.step) != written:
        raise UserError(
            f"{run.metrics}: its first {found.step} lines are not those that the run had written at {found.path}: "
            "restore it, or set overwrite to start again"
        )


def clear_the_way(work: RunDir, found: Checkpoint | None) -> None:
    """Remove leftovers of an unfinished run that is not resumed, and the recorded steps after its checkpoint."""
    if found is None:
        # with overwrite an attempt that is given up; without it there is nothing, or it would have been refused
        shutil.rmtree(work.checkpoints, ignore_errors=True)
        work.metrics.unlink(missing_ok=True)
    remove_partial(work.checkpoints)
    for file in (work.metrics, work.resolved("train")):
        remove_partial(work.path, file.name)
    if found is not None:
        keep_lines(work.metrics, found.step)
