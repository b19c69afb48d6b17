"""Finds the checkpoint from which an unfinished training run resumes, and checks that the run is the same."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from dataclasses import asdict
from typing import Any

from dist_moe.config.schema import Config
from dist_moe.errors import UserError
from dist_moe.files import hash_first_lines
from dist_moe.parallel.shared_files import remove_partial
from dist_moe.selection.stored import open_masks
from dist_moe.store.origin import require_follows
from dist_moe.training.adjustments import read_adjustments
from dist_moe.training.checkpoint_index import Checkpoint, checkpoint_directories, last_checkpoint
from dist_moe.training.ledger import keep_lines
from dist_moe.training.revisions import MaskRevisions
from dist_moe.workflows.inputs import Inputs
from dist_moe.workflows.run_dir import RunDir, require_absent
from dist_moe.workflows.trained_run import result_settings

log = logging.getLogger(__name__)

GIVE_BACK = "restore it, or set overwrite to start again"


def resume_facts(config: Config, inputs: Inputs, masks: MaskRevisions, adjust_data_hash: str = "") -> dict[str, Any]:
    """Everything that determines a run's steps; a checkpoint with other facts is refused."""
    batches, adjust = hashlib.sha256(" ".join(masks.first.batch_ids).encode()).hexdigest(), config.train.adjust
    return {
        "model_hash": inputs.model_hash,
        "tokenizer_hash": inputs.tokenizer_hash,
        "data_hash": inputs.prompts.data_hash,
        "tokens_hash": inputs.tokens_hash,
        "batches_hash": batches,
        "masks_digest": masks.first.digest,
        "mask_revisions": [[end, store.digest] for end, store in zip(masks.ends, masks.stores[1:], strict=True)],
        **result_settings(config),
        **({} if adjust.every is None else adjust_facts(config, adjust_data_hash)),
    }


def adjust_facts(config: Config, data_hash: str) -> dict[str, Any]:
    """What `train.adjust` depends on besides its own settings; `data_hash` is that of the rows that it judges by."""
    adjust, analysis, evaluation = config.train.adjust, asdict(config.analysis), asdict(config.evaluation)
    counting = ("micro_batch_tokens", "max_new_tokens", "temperature") if adjust.reidentifies else ()
    judging = ("micro_batch_tokens", "max_new_tokens", "judges", "judge", "resamples")
    facts = {f"analysis.{key}": analysis[key] for key in counting}
    facts |= {f"evaluation.{key}": evaluation[key] for key in judging}
    plain: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return plain | {"adjust_data_hash": data_hash}


def own_revisions(masks: MaskRevisions, work: RunDir, found: Checkpoint | None, every: int | None) -> MaskRevisions:
    """The masks of a run, with those that it wrote itself up to its checkpoint.

    Raises:
        UserError: they are missing, or are not those that the run had written.
    """
    if found is None or every is None:
        return masks
    adjustments = read_adjustments(work.adjustments, num_adjusted(found, every))
    for number, adjustment in enumerate(adjustments, 1):
        if adjustment.step != number * every:
            raise UserError(
                f"{work.adjustments}:{number}: of step {adjustment.step}, expected {number * every}: {GIVE_BACK}"
            )
        if adjustment.revision is None:
            continue
        place = work.revision(adjustment.revision.number).masks
        store = open_masks(place)
        require_follows(masks.stores[-1], store)
        if (adjustment.revision.number, adjustment.revision.digest) != (len(masks.stores), store.digest):
            raise UserError(f"{place} is not what {work.adjustments}:{number} says that the run wrote: {GIVE_BACK}")
        masks = masks.and_then(adjustment.step, store)
    if masks.at(max(found.step, 1)) != found.index.state.masks:
        raise UserError(f"{work.revisions} does not end with the masks that {found.path} names: {GIVE_BACK}")
    return masks


def num_adjusted(found: Checkpoint, every: int) -> int:
    """How many evaluations came before the last step of a checkpoint; that after it is done again."""
    return max(found.step - 1, 0) // every


def unfinished_run(work: RunDir, config: Config, facts: dict[str, Any], masks: MaskRevisions) -> Checkpoint | None:
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
                own_revisions(masks, work, found, config.train.adjust.every)
        except UserError as error:
            if not config.overwrite:
                raise
            log.info(f"Starting again from step 0, because overwrite is set: {error}")
            return None
        if found is not None:
            return found
    if not config.overwrite:
        for earlier in (work.metrics, work.adjustments, work.revisions, *checkpoint_directories(work.checkpoints)):
            require_absent(earlier, overwrite=False)
    return None


def _require_metrics(run: RunDir, found: Checkpoint) -> None:
    written = found.index.metrics_sha256
    if written is not None and hash_first_lines(run.metrics, found.step) != written:
        raise UserError(
            f"{run.metrics}: its first {found.step} lines are not those that the run had written at {found.path}: "
            "restore it, or set overwrite to start again"
        )


def clear_the_way(work: RunDir, found: Checkpoint | None, every: int | None) -> None:
    """Remove leftovers of an unfinished run that is not resumed, and what was recorded after its checkpoint."""
    if found is None:
        # with overwrite an attempt that is given up; without it there is nothing, or it would have been refused
        for directory in (work.checkpoints, work.revisions):
            shutil.rmtree(directory, ignore_errors=True)
        for file in (work.metrics, work.plan, work.adjustments):
            file.unlink(missing_ok=True)
    for directory in (work.checkpoints, work.revisions):
        remove_partial(directory)
    for file in (work.metrics, work.plan, work.adjustments, work.resolved("train")):
        remove_partial(work.path, file.name)
    if found is not None:
        keep_lines(work.metrics, found.step)
    if found is not None and every is not None:
        keep_lines(work.adjustments, num_adjusted(found, every))
        later = found.index.state.masks.number + 1
        while work.revision(later).path.exists():
            shutil.rmtree(work.revision(later).path)
            later += 1
